//! `ocelli bench`: what users wait for, measured.
//!
//! | module | job |
//! |---|---|
//! | `latency`, `throughput`, `serve`, `vision`, `startup` | a subcommand each |
//! | `record` | what all of them leave behind: one JSON object of figures |
//! | `samples` | many numbers in a few |
//! | `table` | a record for people |
//! | `baseline` | a record beside an earlier one, and what may be said of the difference |
//! | `report` | a folder of records and traces as a page |
//! | `outcome` | where a record goes |
//! | `machine` | what a figure must name, and the ceilings that it stands below |
//! | `work`, `pictures` | what is asked |
//! | `cost` | what that moves and computes |

mod baseline;
mod cost;
mod latency;
mod machine;
mod outcome;
mod pictures;
pub(crate) mod record;
mod report;
mod samples;
#[cfg(feature = "server")]
mod serve;
mod startup;
mod table;
mod throughput;
mod vision;
mod work;

use anyhow::Result;
use clap::Subcommand;

#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// One request after another: first token, time per token
    Latency(latency::LatencyArgs),
    /// Many requests at once: requests and tokens a second
    Throughput(throughput::ThroughputArgs),
    /// A running server, over HTTP: first token, time per token, requests and tokens a second
    #[cfg(feature = "server")]
    Serve(serve::ServeArgs),
    /// Pictures alone, from the bytes of a file to the rows that prompts refer to
    Vision(vision::VisionArgs),
    /// From the start of a process to its first token, and where that time goes
    Startup(startup::StartupArgs),
    /// A folder of what these left behind, as one page: tables, rooflines, bars of a token, and what changed
    Report(report::ReportArgs),
}

pub(super) fn run(command: &BenchCommand) -> Result<()> {
    match command {
        BenchCommand::Latency(args) => latency::run(args),
        BenchCommand::Throughput(args) => throughput::run(args),
        #[cfg(feature = "server")]
        BenchCommand::Serve(args) => serve::run(args),
        BenchCommand::Vision(args) => vision::run(args),
        BenchCommand::Startup(args) => startup::run(args),
        BenchCommand::Report(args) => report::run(args),
    }
}
