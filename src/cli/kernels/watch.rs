//! `ocelli kernels watch`: the loop that a kernel author lives in. A saved source is compiled, checked and timed, without
//! building this program again.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::compile::{Compiled, Compiler, TemporaryDir};
use super::{WatchArgs, check, say, select};
use crate::DeviceLost;
use crate::backend::cuda::driver;
use crate::backend::cuda::folder::Folder;
use crate::backend::cuda::nvcc::Arch;
use crate::cli::tell;
use crate::mem::DType;
use crate::ops::Op;
use crate::workbench::bench::{Bench, Ceilings, Measured};
use crate::workbench::check::Checker;
use crate::workbench::{Case, Size, cases};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_millis(100);

pub(super) fn run(args: &WatchArgs) -> Result<()> {
    let watched = Watched::new(&args.file)?;
    let mut bench = Gpu::open(args)?;
    let arch = bench.as_ref().map_or_else(|| "sm_90a".to_owned(), Gpu::arch);
    let arch = args.arch.clone().unwrap_or(arch);
    let arch = Arch::parse(&arch)
        .with_context(|| format!("--arch {arch}: compute_NN is PTX, sm_NN machine code, NN >= 80"))?;
    let dir = TemporaryDir::new()?;
    let compiler = Compiler::new(watched.op, arch, &args.file, dir.path())?;
    loop {
        let saved = watched.saved();
        let round = round(args, &watched, &compiler, bench.as_mut());
        if args.once {
            return round;
        }
        let lost = round.as_ref().is_err_and(|error| error.chain().any(|cause| cause.is::<DeviceLost>()));
        if let Err(error) = round {
            tell(format_args!("{error:#}"));
        }
        tell(format_args!("waiting for {} and its headers to be saved; Ctrl-C ends", args.file.display()));
        while watched.saved() == saved {
            thread::sleep(LOOK);
        }
        if lost {
            drop(dir);
            return start_again();
        }
    }
}

/// A kernel that reads or writes where it may not costs the process its GPU, for good: another process takes this one's
/// place. What the version before took is forgotten.
fn start_again() -> Result<()> {
    let program = env::current_exe().context("finding this program, to start it again")?;
    Err(Command::new(program).args(env::args_os().skip(1)).exec()).context("starting this program again")
}

/// Compile, check, time, and say what each took.
fn round(args: &WatchArgs, watched: &Watched, compiler: &Compiler, gpu: Option<&mut Gpu>) -> Result<()> {
    let start = Instant::now();
    let Compiled { said, seconds } = compiler.compile()?;
    say(&format!("compiled for {} in {seconds:.1} s\n{}", compiler.arch().name, said.trim_end()))?;
    let Some(gpu) = gpu else { return Ok(()) };
    let folder = Arc::new(Folder::read(compiler.dir())?);
    gpu.check(args, watched.op, &folder)?;
    gpu.time(args, watched.op, folder)?;
    say(&format!("{:.1} s from the source to here", start.elapsed().as_secs_f64()))
}

/// A source and the headers beside it.
struct Watched {
    file: PathBuf,
    op: &'static str,
}

impl Watched {
    fn new(file: &Path) -> Result<Watched> {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        ensure!(file.extension().is_some_and(|e| e == "cu") && file.is_file(), "{}: no such .cu file", file.display());
        let op = Op::NAMES.iter().find(|op| **op == name);
        let op = op.with_context(|| {
            let known = Op::NAMES.join(", ");
            format!(
                "{}: a kernel's file is named as its op, and no op is named `{name}`; there are {known}",
                file.display()
            )
        })?;
        Ok(Watched { file: file.to_owned(), op })
    }

    /// When each of the files was last written.
    fn saved(&self) -> Vec<(PathBuf, Option<SystemTime>)> {
        let dir = self.file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let headers = entries.filter(|path| path.extension().is_some_and(|e| e == "cuh"));
        let mut files: Vec<PathBuf> = headers.chain([self.file.clone()]).collect();
        files.sort();
        let modified = |file: &PathBuf| fs::metadata(file).and_then(|meta| meta.modified()).ok();
        files.into_iter().map(|file| (file.clone(), modified(&file))).collect()
    }
}

/// What checks and times, and what the version before took.
struct Gpu {
    bench: Bench,
    before: HashMap<String, Measured>,
}

impl Gpu {
    /// `None` where there is none, with the reason on stderr.
    fn open(args: &WatchArgs) -> Result<Option<Gpu>> {
        if let Err(missing) = driver::count() {
            tell(format_args!("neither checked nor timed: {missing:#}"));
            return Ok(None);
        }
        let bench = Bench::new(0, args.dtype.dtype(), false)?;
        Ok(Some(Gpu { bench, before: HashMap::new() }))
    }

    fn arch(&self) -> String {
        let (major, minor) = self.bench.properties().gpu.compute_capability;
        // What is tuned for Hopper uses instructions that no other has.
        if (major, minor) == (9, 0) { "sm_90a".into() } else { format!("sm_{major}{minor}") }
    }

    fn ordinal(&self) -> usize {
        self.bench.properties().ordinal
    }

    /// The edges, then the sizes of models; the first that is wrong ends it.
    fn check(&self, args: &WatchArgs, op: &str, folder: &Arc<Folder>) -> Result<()> {
        let start = Instant::now();
        let mut cases = cases::select(Some(op), None);
        cases.retain(|case| case.size == Size::Edge);
        cases.extend(select(Some(op), args.shape.as_deref(), |size| size == Size::Real)?);
        let checker = Checker::with(self.ordinal(), folder.clone().into(), &cases)?;
        let (mut checked, mut most) = (0, 0f64);
        for (case, dtype) in cases.iter().flat_map(|case| [DType::F16, DType::Bf16].map(|dtype| (case, dtype))) {
            for verdict in checker.check(case, dtype, &[0xff])? {
                checked += 1;
                most = most.max(verdict.used);
                if verdict.fault.is_some() {
                    bail!("{}", check::as_text(case, dtype, &verdict));
                }
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        say(&format!("checked {checked} cases in {seconds:.1} s: at most {:.1} % of a tolerance used", 100.0 * most))
    }

    fn time(&mut self, args: &WatchArgs, op: &str, folder: Arc<Folder>) -> Result<()> {
        let start = Instant::now();
        self.bench.use_kernels(folder.into());
        for case in select(Some(op), args.shape.as_deref(), |size| size != Size::Edge)? {
            let now = self.bench.measure(&case, args.dtype.dtype(), args.repeat as usize)?;
            say(&row(&case, &now, self.before.get(&case.name), &self.bench.ceilings))?;
            self.before.insert(case.name, now);
        }
        say(&format!("timed in {:.1} s", start.elapsed().as_secs_f64()))
    }
}

/// A case beside the version before. Where the two spreads overlap, there is no change to speak of.
fn row(case: &Case, now: &Measured, before: Option<&Measured>, ceilings: &Ceilings) -> String {
    let us = |seconds: f64| 1e6 * seconds;
    // A kernel is as good as the larger of its two shares.
    let (read, matrix) = (now.bandwidth() / ceilings.read, now.rate() / ceilings.best_matrix());
    let (share, best) = if matrix > read { (matrix, "multiplying") } else { (read, "reading") };
    let change = before.map_or_else(String::new, |before| {
        let (a, b) = (before.seconds, now.seconds);
        let word = if b.high < a.low {
            "faster"
        } else if b.low > a.high {
            "slower"
        } else {
            "same"
        };
        format!("  {:+.1} % {word}", 100.0 * (b.median / a.median - 1.0))
    });
    format!(
        "{:<36} {:>9.2} us ({:.2} .. {:.2})  {:>5.1} % of {best}{change}",
        case.name,
        us(now.seconds.median),
        us(now.seconds.low),
        us(now.seconds.high),
        100.0 * share
    )
}
