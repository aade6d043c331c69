//! What a bench leaves behind: one JSON object, the same for every bench.
//!
//! `--json` prints it, `--save` writes it, `--baseline` and `ocelli bench report` read it.

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::samples::Samples;

/// What a client does not know of a server.
pub(crate) const UNKNOWN: &str = "unknown";

/// A run of a bench.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Which bench it was.
    pub bench: Bench,
    /// Of this program.
    pub version: String,
    /// When it ended, as `2026-11-22T22:00:00Z`.
    pub date: String,
    /// The arguments as they were given, but for secrets.
    pub command: String,
    /// Name of the GPU, `host` where the processor computed, `unknown` where a server did.
    pub gpu: String,
    /// Of the GPU.
    pub driver: Option<String>,
    /// What ran the plans, or the interface of the server.
    pub backend: String,
    /// Name of the checkpoint's directory, or what the server calls its model.
    pub model: String,
    /// Type of the activations; `unknown` behind a server.
    pub dtype: String,
    /// `safetensors`, `dummy`, or `unknown` behind a server.
    pub load_format: String,
    /// The best that the GPU did in this run.
    pub ceilings: Option<Ceilings>,
    /// What was asked.
    pub input: Input,
    /// What came of it, in the order of the table.
    pub figures: Figures,
    /// Further fields: those of `vllm bench serve`.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Which bench a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Bench {
    /// One request after another.
    Latency,
    /// Many requests at once.
    Throughput,
    /// A server, over HTTP.
    Serve,
    /// Pictures alone.
    Vision,
    /// Fresh processes.
    Startup,
}

impl Bench {
    /// The subcommand.
    pub const fn name(self) -> &'static str {
        match self {
            Bench::Latency => "latency",
            Bench::Throughput => "throughput",
            Bench::Serve => "serve",
            Bench::Vision => "vision",
            Bench::Startup => "startup",
        }
    }
}

/// The best that a GPU did in the run of the record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ceilings {
    /// 10^9 bytes a second, reading only.
    pub read_gb_s: f64,
    /// 10^12 operations a second of the best matrix product.
    pub matrix_tflop_s: f64,
    /// Its shape.
    pub matrix_shape: String,
}

/// What was asked, and how often.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Input {
    /// Tokens of a prompt, those of its pictures among them; the mean where prompts differ.
    pub prompt_tokens: u64,
    /// Those of the pictures; `None` behind a server, which does not say.
    pub image_tokens: Option<u64>,
    /// Tokens of an answer.
    pub output_tokens: u64,
    /// Sizes of the pictures of a prompt, as `640x480`.
    pub pictures: Vec<String>,
    /// Requests of a repeat.
    pub requests: u64,
    /// Requests that are under way at once; `None` is all of them.
    pub concurrency: Option<u64>,
    /// Requests a second; `None` is as soon as possible.
    pub request_rate: Option<f64>,
    /// Of texts, pictures and times of arrival.
    pub seed: u64,
    /// How often all of it was measured.
    pub repeats: u64,
    /// Requests (of `throughput`: repeats) before those.
    pub warmup: u64,
}

/// Figures by their name, in the order in which they are told.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Figures(pub Vec<(String, Figure)>);

/// A quantity, measured many times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// In words.
    pub what: String,
    /// `ms`, `req/s`, `tok/s`, `GB/s`, `TFLOP/s`, ...
    pub unit: String,
    /// Which way is better. `None` for what explains another figure, and is not judged.
    pub better: Option<Better>,
    /// Of all samples, as are the others.
    pub mean: f64,
    /// Half of the samples are below.
    pub median: f64,
    /// Standard deviation.
    pub std: f64,
    /// Nine tenths of the samples are below.
    pub p90: f64,
    /// See `p90`.
    pub p99: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many there are.
    pub samples: u64,
    /// The median of every repeat, in order.
    pub repeats: Vec<f64>,
    /// The median's share of the ceiling that was measured in the same run.
    pub ceiling_percent: Option<f64>,
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// Less is, as of times.
    Lower,
    /// More is, as of rates.
    Higher,
}

impl Figure {
    /// Of the samples of every repeat; `None` if there is not one.
    pub fn of(what: &str, unit: &str, better: Option<Better>, repeats: &[Vec<f64>]) -> Option<Figure> {
        let medians = repeats.iter().filter_map(|r| Some(Samples::of(r.iter().copied())?.quantile(0.5)));
        let all = Samples::of(repeats.iter().flatten().copied())?;
        Some(Figure {
            what: what.into(),
            unit: unit.into(),
            better,
            mean: all.mean(),
            median: all.quantile(0.5),
            std: all.deviation(),
            p90: all.quantile(0.9),
            p99: all.quantile(0.99),
            min: all.quantile(0.0),
            max: all.quantile(1.0),
            samples: all.count() as u64,
            repeats: medians.collect(),
            ceiling_percent: None,
        })
    }

    /// Beside the most that was possible, in the figure's unit.
    pub fn beside(mut self, ceiling: Option<f64>) -> Figure {
        self.ceiling_percent = ceiling.map(|ceiling| 100.0 * self.median / ceiling);
        self
    }

    /// The smallest and the largest median of a repeat.
    pub fn range(&self) -> (f64, f64) {
        let fold = |start: f64, of: fn(f64, f64) -> f64| self.repeats.iter().copied().fold(start, of);
        (fold(f64::INFINITY, f64::min), fold(f64::NEG_INFINITY, f64::max))
    }
}

impl Figures {
    /// Append a figure that has samples.
    pub fn push(&mut self, name: impl Into<String>, figure: Option<Figure>) {
        self.0.extend(figure.map(|figure| (name.into(), figure)));
    }

    /// The figure of this name.
    pub fn get(&self, name: &str) -> Option<&Figure> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, figure)| figure)
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, figure) in &self.0 {
            map.serialize_entry(name, figure)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Figures {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Figures, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Figures;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("figures by their name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Figures, A::Error> {
                let mut figures = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    figures.push(entry);
                }
                Ok(Figures(figures))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;

    /// A record of one request after another, whose `ttft_ms` had these repeats.
    pub fn record(repeats: &[Vec<f64>]) -> Record {
        let mut figures = Figures::default();
        figures.push("ttft_ms", Figure::of("first token", "ms", Some(Better::Lower), repeats));
        figures.push("queue_ms", Figure::of("waiting", "ms", None, repeats));
        figures.push(
            "decode_gb_s",
            Figure::of("read", "GB/s", Some(Better::Higher), repeats).map(|f| f.beside(Some(400.0))),
        );
        Record {
            bench: Bench::Latency,
            version: "0.1.0".into(),
            date: "2026-11-22T22:00:00Z".into(),
            command: "ocelli bench latency".into(),
            gpu: "NVIDIA H200".into(),
            driver: Some("580.159.04 (CUDA 13.0)".into()),
            backend: "cuda".into(),
            model: "llava-1.5-7b".into(),
            dtype: "bf16".into(),
            load_format: "dummy".into(),
            ceilings: Some(Ceilings { read_gb_s: 400.0, matrix_tflop_s: 781.0, matrix_shape: "m".into() }),
            input: Input { prompt_tokens: 645, repeats: repeats.len() as u64, ..Input::default() },
            figures,
            more: Map::new(),
        }
    }

    #[test]
    fn a_record_outlives_the_way_through_json() {
        let mut even = record(&[vec![25.0; 3], vec![25.0]]);
        even.more.insert("mean_ttft_ms".into(), json!(25.0));
        let text = serde_json::to_string(&even).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), even);
    }

    #[test]
    fn the_fields_are_those_that_others_read() {
        let mut record = record(&[vec![10.0, 30.0, 20.0], vec![40.0]]);
        record.more.insert("mean_ttft_ms".into(), json!(25.0));
        let value = serde_json::to_value(&record).unwrap();
        assert_eq!((&value["bench"], &value["mean_ttft_ms"]), (&json!("latency"), &json!(25.0)));
        let names: Vec<_> = value["figures"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["ttft_ms", "queue_ms", "decode_gb_s"], "in the order of the table");
        let ttft = &value["figures"]["ttft_ms"];
        assert_eq!((&ttft["better"], &ttft["samples"]), (&json!("lower"), &json!(4)));
        assert_eq!((&ttft["median"], &ttft["repeats"]), (&json!(25.0), &json!([20.0, 40.0])));
        assert_eq!(value["figures"]["decode_gb_s"]["ceiling_percent"], json!(6.25));
        assert!(value["figures"]["queue_ms"]["better"].is_null());
    }

    #[test]
    fn a_figure_without_samples_is_none() {
        assert_eq!(Figure::of("x", "ms", None, &[vec![], vec![]]), None);
        let half = Figure::of("x", "ms", None, &[vec![], vec![1.0]]).unwrap();
        assert_eq!((half.samples, half.repeats), (1, vec![1.0]));
    }
}
