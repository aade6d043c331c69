//! `ocelli kernels bench`: what does it take, and what would it take at best?

use std::io::{self, Write};
use std::time::SystemTime;

use anyhow::Result;
use serde_json::{Value, json};

use super::{BenchArgs, say};
use crate::cli::date::utc;
use crate::cli::machine::driver_name;
use crate::mem::DType;
use crate::workbench::bench::{Bench, Ceilings, Measured};
use crate::workbench::{Case, Size, cases};

pub(super) fn run(args: &BenchArgs) -> Result<()> {
    let cases = args.selection.cases(|size| size != Size::Edge)?;
    let dtype = args.dtype.dtype();
    let kernels = args.choice.kernels()?;
    let mut bench = Bench::new(0, dtype, args.against.is_some())?;
    bench.use_kernels(kernels);
    let machine = Machine::of(&bench);
    let library = bench.library().map(|l| l.unwrap_or_else(|missing| format!("not present: {missing}")));
    if let Some(library) = &library {
        writeln!(io::stderr(), "{library}")?;
    }
    if args.json {
        say(&machine.ceilings(dtype, &bench.ceilings, library.as_deref()).to_string())?;
    } else {
        say(&heading(&machine, dtype, &bench.ceilings))?;
    }
    for (i, case) in cases.iter().enumerate() {
        let bar = format!("\r\x1b[K{}/{} {} {}", i + 1, cases.len(), case.op, case.name);
        progress(&bar)?;
        let measured = bench.measure(case, dtype, args.repeat as usize)?;
        progress("\r\x1b[K")?;
        say(&if args.json {
            machine.line(case, dtype, &measured, &bench.ceilings).to_string()
        } else {
            row(case, &measured, &bench.ceilings)
        })?;
    }
    Ok(())
}

/// Show where the run is, if somebody is watching.
fn progress(text: &str) -> Result<()> {
    use std::io::IsTerminal;
    let mut stderr = io::stderr().lock();
    if stderr.is_terminal() {
        write!(stderr, "{text}")?;
        stderr.flush()?;
    }
    Ok(())
}

const TERA: f64 = 1e12;

fn heading(machine: &Machine, dtype: DType, c: &Ceilings) -> String {
    let library = c.matrix_library.map_or_else(String::new, |l| format!(", cuBLASLt {:.0}", l / TERA));
    format!(
        "{}, {}: reads {:.3} TB/s, multiplies {dtype} at {:.0} TFLOP/s{library}\n\n{:<15} {:<36} {:>9} {:>17} {:>7} {:>6} \
         {:>7} {:>6} {:>9}",
        machine.gpu,
        machine.driver,
        c.read / TERA,
        c.matrix / TERA,
        "op",
        "case",
        "us",
        "10 % .. 90 %",
        "GB/s",
        "% read",
        "TFLOP/s",
        "% max",
        "cuBLASLt"
    )
}

fn row(case: &Case, m: &Measured, c: &Ceilings) -> String {
    let us = |seconds: f64| seconds * 1e6;
    let spread = format!("{:.1} .. {:.1}", us(m.seconds.low), us(m.seconds.high));
    let library = m.library.map_or_else(String::new, |l| format!("{:.1}", us(l.median)));
    let line = format!(
        "{:<15} {:<36} {:>9.1} {:>17} {:>7.0} {:>6.1} {:>7.1} {:>6.1} {:>9}",
        case.op,
        case.name,
        us(m.seconds.median),
        spread,
        m.bandwidth() / 1e9,
        100.0 * m.bandwidth() / c.read,
        m.rate() / TERA,
        100.0 * m.rate() / c.best_matrix(),
        library
    );
    line.trim_end().to_owned()
}

/// What a figure must name.
struct Machine {
    gpu: String,
    driver: String,
    date: String,
}

impl Machine {
    fn of(bench: &Bench) -> Machine {
        let properties = bench.properties();
        Machine { gpu: properties.name.clone(), driver: driver_name(properties), date: utc(SystemTime::now()) }
    }

    fn with_machine(&self, mut line: Value) -> Value {
        line["gpu"] = json!(self.gpu);
        line["driver"] = json!(self.driver);
        line["date"] = json!(self.date);
        line["version"] = json!(env!("CARGO_PKG_VERSION"));
        line
    }

    fn ceilings(&self, dtype: DType, c: &Ceilings, library: Option<&str>) -> Value {
        self.with_machine(json!({
            "ceiling": true,
            "dtype": dtype.name(),
            "read_gb_s": c.read / 1e9,
            "matrix_shape": cases::gemm::CEILING,
            "matrix_tflop_s": c.matrix / TERA,
            "cublaslt_tflop_s": c.matrix_library.map(|l| l / TERA),
            "cublaslt": library,
        }))
    }

    fn line(&self, case: &Case, dtype: DType, m: &Measured, c: &Ceilings) -> Value {
        let us = |seconds: f64| seconds * 1e6;
        self.with_machine(json!({
            "op": case.op,
            "shape": case.name,
            "dtype": dtype.name(),
            "us": us(m.seconds.median),
            "us_low": us(m.seconds.low),
            "us_high": us(m.seconds.high),
            "launches": m.launches,
            "copies": m.copies,
            "bytes": m.cost.bytes,
            "flops": m.cost.flops,
            "gb_s": m.bandwidth() / 1e9,
            "tflop_s": m.rate() / TERA,
            "read_percent": 100.0 * m.bandwidth() / c.read,
            "matrix_percent": 100.0 * m.rate() / c.best_matrix(),
            "cublaslt_us": m.library.map(|l| us(l.median)),
        }))
    }
}
