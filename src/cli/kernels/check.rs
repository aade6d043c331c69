//! `ocelli kernels check`: is it right?

use std::io::{self, Write};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{CheckArgs, Fill, Float, say};
use crate::mem::DType;
use crate::workbench::check::{Checker, Verdict};
use crate::workbench::{Case, Size};

pub(super) fn run(args: &CheckArgs) -> Result<()> {
    let cases = args.selection.cases(|size| if args.small { size == Size::Edge } else { size != Size::Timed })?;
    let (fill, fill_name) = match args.fill {
        Fill::Nan => (0xff, "nan"),
        Fill::Zeros => (0, "zeros"),
    };
    let dtypes = args.dtype.map_or(vec![Float::F16, Float::Bf16], |dtype| vec![dtype]);
    let checker = Checker::with(0, args.choice.kernels()?, &cases)?;
    let device = checker.device().properties();
    writeln!(io::stderr(), "{} cases on {}, memory filled with {fill_name}", cases.len() * dtypes.len(), device.name)?;

    let (mut checked, mut failed) = (0, 0);
    for (case, dtype) in cases.iter().flat_map(|case| dtypes.iter().map(move |dtype| (case, dtype.dtype()))) {
        for verdict in checker.check(case, dtype, &[fill])? {
            checked += 1;
            failed += usize::from(verdict.fault.is_some());
            say(&if args.json { as_json(case, dtype, fill_name, &verdict) } else { as_text(case, dtype, &verdict) })?;
        }
    }
    ensure!(failed == 0, "{failed} of {checked} cases failed");
    writeln!(io::stderr(), "{checked} cases passed")?;
    Ok(())
}

fn as_json(case: &Case, dtype: DType, fill: &str, verdict: &Verdict) -> String {
    let Verdict { used, hash, fault } = verdict;
    json!({
        "op": case.op,
        "shape": case.name,
        "dtype": dtype.name(),
        "fill": fill,
        "ok": fault.is_none(),
        // Infinite and not a number, which JSON does not have, are null.
        "tolerance": case.tolerance.to_string(),
        "tolerance_used": used,
        "hash": format!("{hash:016x}"),
        "fault": fault,
    })
    .to_string()
}

pub(super) fn as_text(case: &Case, dtype: DType, verdict: &Verdict) -> String {
    let Verdict { used, hash, fault } = verdict;
    let word = if fault.is_none() { "ok" } else { "FAILED" };
    let used = if used.is_finite() { format!("{:.1} %", 100.0 * used) } else { "out".into() };
    let fault = fault.as_ref().map_or_else(String::new, |fault| format!("\n       {fault}"));
    let Case { op, name, tolerance, .. } = case;
    format!("{word:<6} {op:<15} {:<5} {name:<36} {used:>8} of {tolerance:<22} {hash:016x}{fault}", dtype.name())
}
