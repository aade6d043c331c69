//! Pixels: decoding, resizing, tiling; no device.
