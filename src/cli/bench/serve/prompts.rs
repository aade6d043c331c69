//! What is asked: texts and pictures that no cache has seen.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::Bytes;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use rayon::prelude::*;
use serde_json::{Value, json};

/// Words that are one token each to most tokenizers of English.
const WORDS: [&str; 64] = [
    "the", "of", "and", "to", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as", "his",
    "they", "be", "at", "one", "have", "this", "from", "or", "had", "by", "hot", "but", "some", "what", "there", "we",
    "can", "out", "other", "were", "all", "your", "when", "up", "use", "word", "how", "said", "an", "each", "she",
    "which", "do", "their", "time", "if", "will", "way", "about", "many", "then", "them", "would", "write", "like",
    "so", "these",
];

/// Longest side of a picture.
const SIDE: u16 = 8192;
/// Pillow's and most cameras' middle way.
const QUALITY: u8 = 75;
/// Brightness that a pixel is off its place in the gradient, at most: the grain of a photograph.
const GRAIN: f32 = 16.0;

/// Width and height of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub width: u16,
    pub height: u16,
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Size, String> {
        let side = |side: &str| side.parse().ok().filter(|side| (1..=SIDE).contains(side));
        let sides = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
        let (width, height) = sides.ok_or_else(|| format!("must be WxH, each from 1 to {SIDE}"))?;
        Ok(Size { width, height })
    }
}

/// How requests are made. The same ones for the same fields.
pub(super) struct Prompts<'a> {
    pub model: &'a str,
    /// Words of a prompt.
    pub words: u32,
    /// Tokens of an answer.
    pub tokens: u32,
    /// Pictures of a prompt.
    pub pictures: u32,
    pub size: Size,
    pub seed: u64,
}

impl Prompts<'_> {
    /// The bodies of some requests, all of them different.
    pub fn bodies(&self, count: usize) -> Result<Vec<Bytes>> {
        (0..count).into_par_iter().map(|i| Ok(self.body(i)?.to_string().into())).collect()
    }

    fn body(&self, index: usize) -> Result<Value> {
        let mut random = Random::new(self.seed, index as u64);
        let words: Vec<_> = (0..self.words).map(|_| WORDS[random.below(WORDS.len())]).collect();
        let mut parts = vec![json!({ "type": "text", "text": words.join(" ") })];
        for _ in 0..self.pictures {
            let data = BASE64_STANDARD.encode(picture(self.size, &mut random)?);
            let url = format!("data:image/jpeg;base64,{data}");
            parts.push(json!({ "type": "image_url", "image_url": { "url": url } }));
        }
        Ok(json!({
            "model": self.model,
            "messages": [{ "role": "user", "content": parts }],
            "max_completion_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": { "include_usage": true },
        }))
    }
}

/// A grainy gradient between four colours, as JPEG.
fn picture(size: Size, random: &mut Random) -> Result<Vec<u8>> {
    let (width, height) = (usize::from(size.width), usize::from(size.height));
    let corners: [[f32; 3]; 4] = std::array::from_fn(|_| std::array::from_fn(|_| random.below(256) as f32));
    let mut pixels = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        let down = y as f32 / height as f32;
        for x in 0..width {
            let right = x as f32 / width as f32;
            let grain = GRAIN * (2.0 * random.unit() as f32 - 1.0);
            pixels.extend([0, 1, 2].map(|c| {
                let top = corners[0][c] + (corners[1][c] - corners[0][c]) * right;
                let bottom = corners[2][c] + (corners[3][c] - corners[2][c]) * right;
                (top + (bottom - top) * down + grain) as u8
            }));
        }
    }
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, QUALITY);
    let encoded = encoder.encode(&pixels, size.width.into(), size.height.into(), ExtendedColorType::Rgb8);
    encoded.context("encoding a picture")?;
    Ok(jpeg)
}

/// When requests arrive: exponential gaps, stretched so that the last arrives when `rate` says, as in vLLM's client.
pub(super) fn arrivals(count: usize, rate: f64, seed: u64) -> Vec<Duration> {
    if rate.is_infinite() {
        return vec![Duration::ZERO; count];
    }
    // Another sequence than that of any prompt.
    let mut random = Random::new(seed, u64::MAX);
    let gap = |sum: &mut f64, ()| {
        *sum -= (1.0 - random.unit()).ln();
        Some(*sum)
    };
    let times: Vec<f64> = std::iter::repeat_n((), count).scan(0.0, gap).collect();
    let total = count as f64 / rate;
    let last = times[count - 1].max(f64::MIN_POSITIVE);
    times.iter().map(|time| Duration::from_secs_f64(time / last * total)).collect()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn new(seed: u64, stream: u64) -> Random {
        let mut random = Random(seed);
        random.0 = random.next() ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 on, below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 on, below `end`.
    fn below(&mut self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Alpha, Limits, decode};

    #[test]
    fn prompts_are_those_of_the_seed_and_all_different() {
        let size = Size { width: 33, height: 20 };
        let prompts = |seed| Prompts { model: "m", words: 9, tokens: 4, pictures: 2, size, seed };
        let bodies = prompts(1).bodies(8).unwrap();
        assert_eq!(bodies, prompts(1).bodies(8).unwrap());
        assert_ne!(bodies, prompts(2).bodies(8).unwrap());
        let mut seen = std::collections::BTreeSet::new();
        for body in &bodies {
            let body: Value = serde_json::from_slice(body).unwrap();
            let parts = body["messages"][0]["content"].as_array().unwrap();
            let text = parts[0]["text"].as_str().unwrap();
            assert_eq!((text.split(' ').count(), parts.len()), (9, 3));
            assert!(seen.insert(text.to_owned()));
            for part in &parts[1..] {
                let url = part["image_url"]["url"].as_str().unwrap();
                assert!(seen.insert(url.to_owned()));
                let jpeg = BASE64_STANDARD.decode(url.strip_prefix("data:image/jpeg;base64,").unwrap()).unwrap();
                let rgb = decode(&jpeg, Alpha::White, &Limits::default()).unwrap();
                assert_eq!((rgb.width(), rgb.height()), (33, 20));
            }
        }
    }

    #[test]
    fn arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let times = arrivals(10_000, 50.0, 3);
        assert_eq!(times.last().unwrap().as_secs_f64().round(), 200.0);
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 50.0).collect();
        // Exponential gaps of mean 1 have variance 1 with a standard error of sqrt(8 / n), 0.03 here, and exceed 1 in 37 of 100.
        let variance = gaps.iter().map(|gap| (gap - 1.0).powi(2)).sum::<f64>() / gaps.len() as f64;
        let long = gaps.iter().filter(|gap| **gap > 1.0).count() as f64 / gaps.len() as f64;
        assert!((variance - 1.0).abs() < 0.15 && (long - 0.368).abs() < 0.025, "{variance} {long}");
        assert_eq!(arrivals(3, f64::INFINITY, 0), [Duration::ZERO; 3]);
        assert_eq!(arrivals(1, 0.5, 0), [Duration::from_secs(2)]);
    }

    #[test]
    fn sizes_are_checked() {
        assert_eq!("640x480".parse(), Ok(Size { width: 640, height: 480 }));
        for wrong in ["640", "0x1", "1x8193", "axb", "1x1x1", ""] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
