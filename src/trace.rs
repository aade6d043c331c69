//! What an engine did, and when: the work of its threads, and every plan and launch of its device.
//!
//! A [`Trace`] is recorded between [`Engine::start_trace`](crate::Engine::start_trace) and
//! [`Engine::take_trace`](crate::Engine::take_trace), and written in the format that Chrome's and Perfetto's viewers open.
//! Labels, bytes and operations are those of the plans that ran; there is no second description of a launch.

mod chrome;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::kernel::Cost;
use crate::plan::{Label, Plan};

/// Launches that a trace holds at most, and stretches of threads: half a minute of a 7B model that answers one request,
/// some 250 bytes of a file each.
pub const MAX_LAUNCHES: usize = 1 << 21;

/// What of the device's work is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Every plan as a whole. Plans run as they do without a trace, recorded ones included.
    Plans,
    /// Every launch. They do not overlap then, and what is recorded is launched one by one: a plan takes longer than it does
    /// otherwise, and the sum of its launches more than the whole.
    Launches,
}

/// A stretch of a thread's time.
#[derive(Clone, Debug)]
pub struct Span {
    /// The thread: see [`Trace::threads`].
    pub thread: u64,
    /// What it did.
    pub name: &'static str,
    /// When it began, from the start of the trace.
    pub start: Duration,
    /// How long it took.
    pub time: Duration,
    /// Numbers that belong to it.
    pub args: Vec<(&'static str, u64)>,
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// The next token of sequences.
    Decode,
    /// Parts of prompts, and the next token of others beside them.
    Prefill,
    /// Pictures to rows of the language model.
    Encode,
    /// A decoded picture to the size that the tower takes.
    Resize,
    /// Rows of pictures to where they are kept.
    Keep,
}

impl Kind {
    /// The name in a file.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Decode => "decode",
            Kind::Prefill => "prefill",
            Kind::Encode => "encode",
            Kind::Resize => "resize",
            Kind::Keep => "keep",
        }
    }
}

/// A plan that is to run: what it is for, and in words with its size.
#[derive(Clone, Debug)]
pub struct Work {
    /// What it is for.
    pub kind: Kind,
    /// For example `decode of 8`.
    pub name: String,
    /// What runs. Costs of attention are for the lengths of this run.
    pub plan: Plan,
}

/// A step in words, by its rows that decode and the tokens of prompts beside them.
pub fn step_name(decode: usize, prefill_tokens: usize) -> String {
    match (prefill_tokens, decode) {
        (0, rows) => format!("decode of {rows}"),
        (tokens, 0) => format!("prefill of {tokens} tokens"),
        (tokens, rows) => format!("prefill of {tokens} tokens beside decode of {rows}"),
    }
}

/// An encoding in words: by the tower and the projector, or the projector alone.
pub fn encode_name(tower: bool, tiles: usize) -> String {
    let plural = if tiles == 1 { "" } else { "s" };
    format!("{} of {tiles} tile{plural}", if tower { "encoding" } else { "projection" })
}

/// A plan that ran.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it was for.
    pub kind: Kind,
    /// For example `decode of 8`.
    pub name: String,
    /// When the device began, from the start of the trace.
    pub start: Duration,
    /// How long it took.
    pub time: Duration,
    /// Its launches, in order.
    pub launches: Vec<Launch>,
    /// Whether the launches were timed one by one.
    pub apart: bool,
}

/// A launch of a plan.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Where it stands in the model.
    pub label: Label,
    /// The op.
    pub op: &'static str,
    /// Bytes that had to move and operations that had to be done.
    pub cost: Cost,
    /// How long it took. Zero if launches were not timed.
    pub time: Duration,
}

impl Run {
    /// The run of `work` that began at `start`. `times` holds one entry for every launch, or one for all of them.
    pub(crate) fn new(work: Work, start: Duration, times: &[Duration]) -> Run {
        let steps = work.plan.steps();
        let apart = times.len() == steps.len();
        let launch = |(i, step): (usize, &crate::plan::Step)| Launch {
            label: step.label.clone(),
            op: step.op.name(),
            cost: step.op.cost(),
            time: if apart { times[i] } else { Duration::ZERO },
        };
        let launches = steps.iter().enumerate().map(launch).collect();
        Run { kind: work.kind, name: work.name, start, time: times.iter().sum(), launches, apart }
    }
}

/// What was recorded.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Names of threads by their number.
    pub threads: BTreeMap<u64, String>,
    /// What threads did.
    pub spans: Vec<Span>,
    /// What the device did, in order.
    pub runs: Vec<Run>,
    /// Plans that ran when there was no room left: see [`MAX_LAUNCHES`].
    pub dropped: u64,
}

/// Best figures of the machine, for shares of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes a second, reading only.
    pub read: f64,
    /// Floating-point operations a second of a matrix product.
    pub matrix: f64,
}

impl Ceilings {
    /// The least time that something of this cost can take.
    pub fn floor(&self, cost: Cost) -> Duration {
        Duration::from_secs_f64((cost.bytes as f64 / self.read).max(cost.flops as f64 / self.matrix))
    }
}

/// A trace that is being recorded.
pub(crate) struct Recording {
    /// Times count from here.
    pub start: Instant,
    /// What is timed.
    pub detail: Detail,
    trace: Trace,
    launches: usize,
}

impl Recording {
    pub fn new(detail: Detail) -> Recording {
        Recording { start: Instant::now(), detail, trace: Trace::default(), launches: 0 }
    }

    /// What this thread did from `start` on until now.
    pub fn span(&mut self, name: &'static str, start: Instant, args: &[(&'static str, u64)]) {
        if self.trace.spans.len() >= MAX_LAUNCHES {
            return;
        }
        // What began before the trace belongs to it as far as it lies in it.
        let from = start.max(self.start);
        let (start, time) = (from - self.start, from.elapsed());
        let thread = number();
        let named = || thread::current().name().map_or_else(|| format!("thread {thread}"), str::to_owned);
        self.trace.threads.entry(thread).or_insert_with(named);
        self.trace.spans.push(Span { thread, name, start, time, args: args.to_vec() });
    }

    /// What the device did.
    pub fn run(&mut self, run: Run) {
        self.launches += run.launches.len();
        if self.launches > MAX_LAUNCHES {
            self.trace.dropped += 1;
        } else {
            self.trace.runs.push(run);
        }
    }

    pub fn end(self) -> Trace {
        self.trace
    }
}

/// A number for this thread, from 1 in the order in which threads first recorded something.
fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local!(static OWN: u64 = NEXT.fetch_add(1, Ordering::Relaxed));
    OWN.with(|own| *own)
}
