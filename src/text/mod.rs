//! Tokens: tokenizer, chat template, stop strings; no device.
