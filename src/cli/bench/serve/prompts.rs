//! What is asked: texts and pictures that no cache has seen.

use std::time::Duration;

use anyhow::Result;
use axum::body::Bytes;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::super::pictures::{Random, Size, words};

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
        let text = words(self.words as usize, &mut random).join(" ");
        let mut parts = vec![json!({ "type": "text", "text": text })];
        for picture in self.size.pictures(self.pictures, &mut random)? {
            let data = BASE64_STANDARD.encode(picture);
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

#[cfg(test)]
mod tests {
    use super::super::super::pictures::pixels;
    use super::*;

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
                let rgb = pixels(&jpeg).unwrap();
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
}
