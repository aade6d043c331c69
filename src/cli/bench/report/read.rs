//! A folder of runs: records, traces and lines of `ocelli kernels bench`, each known by what it holds.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::record::Record;
use super::trace::{self, Roof, Trace};

/// What a folder holds, each with the name of its file.
#[derive(Default)]
pub(super) struct Folder {
    /// As it was given.
    pub name: String,
    pub records: Vec<(String, Record)>,
    pub traces: Vec<(String, Trace)>,
    pub kernels: Vec<(String, Kernels)>,
    /// Files, or lines of them, that were not read, and why.
    pub skipped: Vec<(String, String)>,
}

/// What `ocelli kernels bench --json` prints.
#[derive(Default)]
pub(super) struct Kernels {
    /// The last one before the cases.
    pub ceiling: Option<Ceiling>,
    pub cases: Vec<Case>,
}

/// The first line.
#[derive(Debug, Deserialize)]
pub(super) struct Ceiling {
    pub read_gb_s: f64,
    pub matrix_tflop_s: f64,
    pub cublaslt_tflop_s: Option<f64>,
    pub dtype: String,
    pub gpu: String,
    pub driver: String,
    pub date: String,
    pub version: String,
}

impl Ceiling {
    /// The best of the products, whoever made them.
    pub fn roof(&self) -> Option<Roof> {
        let library = self.cublaslt_tflop_s.unwrap_or(0.0);
        Roof::of(Some(self.read_gb_s), Some(self.matrix_tflop_s.max(library)))
    }
}

/// Any other line.
#[derive(Debug, Deserialize)]
pub(super) struct Case {
    pub op: String,
    pub shape: String,
    pub dtype: String,
    pub us: f64,
    pub bytes: f64,
    pub flops: f64,
    pub cublaslt_us: Option<f64>,
}

/// Tells the kinds of objects apart.
#[derive(Deserialize)]
struct Probe {
    #[serde(rename = "traceEvents")]
    trace_events: Option<IgnoredAny>,
    bench: Option<IgnoredAny>,
    ceiling: Option<IgnoredAny>,
}

impl Folder {
    /// Read a folder's `.json` and `.jsonl` files. One that is broken is kept by its name, and the others are read.
    ///
    /// # Errors
    /// If the folder cannot be read, or no file of it can.
    pub fn read(path: &Path) -> Result<Folder> {
        let mut folder = Folder { name: path.display().to_string(), ..Folder::default() };
        let entries = fs::read_dir(path).with_context(|| format!("cannot read the folder {}", path.display()))?;
        let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        files.retain(|file| file.is_file());
        files.sort();
        for file in files {
            let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            let read = match file.extension().and_then(|e| e.to_str()) {
                Some("json") => folder.object(&name, &file),
                Some("jsonl") => folder.lines(&name, &file),
                // Its own pages.
                Some("html") => Ok(()),
                _ => Err(anyhow::anyhow!("neither .json nor .jsonl")),
            };
            if let Err(error) = read {
                folder.skipped.push((name, format!("{error:#}")));
            }
        }
        let Folder { records, traces, kernels, skipped, name } = &folder;
        let why: String = skipped.iter().map(|(name, why)| format!("\n  {name}: {why}")).collect();
        ensure!(
            records.len() + traces.len() + kernels.len() > 0,
            "{name} holds nothing to report: ocelli bench latency --save {name}/latency.json writes a record, --trace \
             {name}/trace.json a trace, ocelli kernels bench --json > {name}/kernels.jsonl the lines of the kernels{why}"
        );
        Ok(folder)
    }

    fn object(&mut self, name: &str, file: &Path) -> Result<()> {
        let text = fs::read_to_string(file)?;
        let probe: Probe = serde_json::from_str(&text).context("no JSON object")?;
        if probe.trace_events.is_some() {
            self.traces.push((name.to_owned(), trace::parse(&text)?));
        } else if probe.bench.is_some() {
            let record = serde_json::from_str(&text).context("no record of a bench")?;
            self.records.push((name.to_owned(), record));
        } else {
            anyhow::bail!("neither a record (\"bench\") nor a trace (\"traceEvents\")");
        }
        Ok(())
    }

    fn lines(&mut self, name: &str, file: &Path) -> Result<()> {
        let text = fs::read_to_string(file)?;
        let mut kernels = Kernels::default();
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            if let Err(error) = kernels.add(line) {
                self.skipped.push((format!("{name}, line {}", number + 1), format!("{error:#}")));
            }
        }
        ensure!(!kernels.cases.is_empty(), "no line is a case of ocelli kernels bench");
        self.kernels.push((name.to_owned(), kernels));
        Ok(())
    }
}

impl Kernels {
    fn add(&mut self, line: &str) -> Result<()> {
        let probe: Probe = serde_json::from_str(line).context("no JSON object")?;
        if probe.ceiling.is_some() {
            self.ceiling = Some(serde_json::from_str(line).context("no ceiling of ocelli kernels bench")?);
            return Ok(());
        }
        let case: Case = serde_json::from_str(line).context("no case of ocelli kernels bench")?;
        ensure!(case.us > 0.0, "{} {} took {} us", case.op, case.shape, case.us);
        self.cases.push(case);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, name: &str, text: &str) {
        fs::write(folder.join(name), text).unwrap();
    }

    #[test]
    fn files_are_known_by_what_they_hold_and_broken_ones_by_name() {
        let here = tempfile::tempdir().unwrap();
        let record = super::super::super::record::tests::record(&[vec![1.0]]);
        let record = serde_json::to_value(record).unwrap();
        write(here.path(), "a.json", &record.to_string());
        write(here.path(), "b.json", r#"{"traceEvents": []}"#);
        let case = r#"{"op": "gemv", "shape": "m1", "dtype": "bf16", "us": 2.0, "bytes": 8, "flops": 8}"#;
        write(here.path(), "c.jsonl", &format!("{case}\n\n{{\"op\": \"gemv\"}}\n"));
        let mut lacking = record.clone();
        lacking.as_object_mut().unwrap().remove("gpu");
        write(here.path(), "lacking.json", &lacking.to_string());
        write(here.path(), "half.json", &record.to_string()[..40]);
        write(here.path(), "other.json", "{\"a\": 1}");
        write(here.path(), "notes.txt", "");
        write(here.path(), "report.html", "");
        let folder = Folder::read(here.path()).unwrap();
        assert_eq!((folder.records.len(), folder.traces.len(), folder.kernels.len()), (1, 1, 1));
        assert_eq!(folder.kernels[0].1.cases.len(), 1);
        let said: Vec<_> = folder.skipped.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        for (said, start) in said.iter().zip([
            "c.jsonl, line 3: no case of ocelli kernels bench: missing field `shape`",
            "half.json: no JSON object: EOF",
            "lacking.json: no record of a bench: missing field `gpu`",
            "notes.txt: neither .json nor .jsonl",
            "other.json: neither a record",
        ]) {
            assert!(said.starts_with(start), "{said}");
        }
        assert_eq!(said.len(), 5);
    }

    #[test]
    fn a_folder_with_nothing_to_report_is_an_error_that_says_what_would_be() {
        let here = tempfile::tempdir().unwrap();
        write(here.path(), "half.json", "{");
        let error = Folder::read(here.path()).err().unwrap().to_string();
        assert!(error.contains("--save") && error.contains("half.json: no JSON object"), "{error}");
        assert!(format!("{:#}", Folder::read(&here.path().join("none")).err().unwrap()).contains("none"));
    }
}
