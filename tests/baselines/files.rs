//! A folder of measured files, every one of which must be sound.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::record::{Bench, Record};

/// What a folder holds.
#[derive(Debug)]
pub struct Folder {
    /// By the names of their files.
    pub records: BTreeMap<String, Record>,
    /// Files of lines.
    pub kernels: usize,
}

impl Folder {
    /// Read every file; the first that is wrong is the error, by its name.
    pub fn read(path: &Path) -> Result<Folder, String> {
        let said = |error: std::io::Error| format!("{}: {error}", path.display());
        let mut folder = Folder { records: BTreeMap::new(), kernels: 0 };
        for entry in fs::read_dir(path).map_err(said)? {
            let file = entry.map_err(said)?.path();
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&file).map_err(said)?;
            folder.add(&name, &text).map_err(|error| format!("{}: {error}", file.display()))?;
        }
        Ok(folder)
    }

    fn add(&mut self, name: &str, text: &str) -> Result<(), String> {
        if name.ends_with(".jsonl") {
            kernels(text)?;
            self.kernels += 1;
        } else if name.ends_with(".json") {
            self.records.insert(name.to_owned(), record(text)?);
        } else {
            return Err("neither .json nor .jsonl".into());
        }
        Ok(())
    }
}

/// A record that names all that a figure must name.
fn record(text: &str) -> Result<Record, String> {
    let record: Record = serde_json::from_str(text).map_err(|error| format!("no record: {error}"))?;
    // A server's client does not know where it ran; the folder's name says it.
    let (gpu, driver) = match record.bench {
        Bench::Serve => ("any", "any"),
        _ => (record.gpu.as_str(), record.driver.as_deref().unwrap_or_default()),
    };
    machine(gpu, driver, &record.date)?;
    let start = format!("ocelli bench {}", record.bench.name());
    if !record.command.starts_with(&start) {
        return Err(format!("the command \"{}\" does not begin with \"{start}\"", record.command));
    }
    if record.figures.0.is_empty() {
        return Err("no figure".into());
    }
    Ok(record)
}

/// Lines of `ocelli kernels bench --json`: a ceiling, then cases.
fn kernels(text: &str) -> Result<(), String> {
    let mut cases = 0;
    for (i, line) in text.lines().enumerate() {
        let at = |error: String| format!("line {}: {error}", i + 1);
        let line: Value = serde_json::from_str(line).map_err(|error| at(error.to_string()))?;
        let word = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        machine(&word("gpu"), &word("driver"), &word("date")).map_err(at)?;
        let numbers: &[&str] = if line["ceiling"].is_boolean() {
            &["read_gb_s", "matrix_tflop_s"]
        } else {
            cases += 1;
            &["us", "us_low", "us_high", "bytes", "flops"]
        };
        if i == 0 && cases > 0 {
            return Err(at("a case before the ceiling".into()));
        }
        if let Some(name) = numbers.iter().find(|name| line[**name].as_f64().is_none()) {
            return Err(at(format!("no number `{name}`")));
        }
        if cases > 0 && (word("op").is_empty() || word("shape").is_empty()) {
            return Err(at("a case without `op` or `shape`".into()));
        }
    }
    if cases == 0 { Err("no case".into()) } else { Ok(()) }
}

/// What must be named beside any figure.
fn machine(gpu: &str, driver: &str, date: &str) -> Result<(), String> {
    let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
    for (what, text) in [("gpu", gpu), ("driver", driver)] {
        if text.is_empty() || text == "unknown" || text == "host" {
            return Err(format!("the {what} is \"{text}\""));
        }
    }
    let form: String = date.chars().map(digits).collect();
    if form == "0000-00-00T00:00:00Z" { Ok(()) } else { Err(format!("the date is \"{date}\"")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::record::tests::record as example;

    const LINES: &str = r#"{"ceiling": true, "read_gb_s": 4402.3, "matrix_tflop_s": 781.2, "gpu": "NVIDIA H200", "driver": "580", "date": "2026-11-22T22:00:00Z"}
{"op": "gemv", "shape": "1x2x3", "us": 1.5, "us_low": 1.4, "us_high": 1.6, "bytes": 8, "flops": 8, "gpu": "NVIDIA H200", "driver": "580", "date": "2026-11-22T22:00:00Z"}
"#;

    #[test]
    fn a_record_that_lacks_something_is_named_with_what_it_lacks() {
        let sound = serde_json::to_value(example(&[vec![10.0]])).unwrap();
        let said = |change: &dyn Fn(&mut Value)| {
            let mut value = sound.clone();
            change(&mut value);
            record(&value.to_string()).err().unwrap_or_default()
        };
        assert_eq!(said(&|_| {}), "");
        for (field, error) in [
            ("gpu", "no record: missing field `gpu`"),
            ("command", "no record: missing field `command`"),
            ("figures", "no record: missing field `figures`"),
            // An optional field that is left out is null.
            ("driver", "the driver is \"\""),
        ] {
            let said = said(&|value| drop(value.as_object_mut().unwrap().remove(field)));
            assert!(said.starts_with(error), "{field}: {said}");
        }
        assert!(said(&|v| v["figures"]["ttft_ms"]["repeats"] = json!(null)).contains("invalid type: null"));
        assert_eq!(said(&|v| v["gpu"] = json!("host")), "the gpu is \"host\"");
        assert_eq!(said(&|v| v["date"] = json!("yesterday")), "the date is \"yesterday\"");
        assert!(said(&|v| v["command"] = json!("vllm bench")).contains("does not begin with \"ocelli bench latency\""));
        assert_eq!(said(&|v| v["figures"] = json!({})), "no figure");
    }

    #[test]
    fn a_wrong_file_is_named() {
        let here = tempfile::tempdir().unwrap();
        fs::write(here.path().join("kernels.jsonl"), LINES).unwrap();
        fs::write(here.path().join("latency.json"), serde_json::to_string(&example(&[vec![10.0]])).unwrap()).unwrap();
        let folder = Folder::read(here.path()).unwrap();
        assert_eq!((folder.records.len(), folder.kernels), (1, 1));
        fs::write(here.path().join("broken.json"), "{}").unwrap();
        let error = Folder::read(here.path()).unwrap_err();
        assert!(error.contains("broken.json: no record: missing field `bench`"), "{error}");
    }

    #[test]
    fn a_wrong_line_is_named() {
        assert_eq!(kernels(LINES), Ok(()));
        let said = |from: &str, to: &str| kernels(&LINES.replacen(from, to, 1)).unwrap_err();
        assert_eq!(said("\"us\": 1.5", "\"us\": null"), "line 2: no number `us`");
        assert_eq!(said("\"shape\"", "\"form\""), "line 2: a case without `op` or `shape`");
        assert_eq!(said("\"driver\": \"580\"", "\"driver\": \"\""), "line 1: the driver is \"\"");
        let (ceiling, case) = LINES.split_once('\n').unwrap();
        assert_eq!(kernels(ceiling), Err("no case".into()));
        assert_eq!(kernels(case), Err("line 1: a case before the ceiling".into()));
    }
}
