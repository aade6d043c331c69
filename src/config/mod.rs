//! A checkpoint's settings, read strictly.
