//! A checkpoint's tensors, checked strictly.
