//! `ocelli bench report`: a folder of runs as one page.
//!
//! | module | job |
//! |---|---|
//! | `read`, `trace` | what the folder holds |
//! | `ops`, `plans` | sums over a trace: by op, by token, by first token |
//! | `svg` | what drawings are made of |
//! | `roofline`, `bars`, `lines`, `compare` | a kind of drawing each, from data to a string |
//! | `heading`, `page` | words and tables, and the file around them |

mod bars;
mod compare;
mod heading;
mod lines;
mod ops;
mod page;
mod plans;
mod read;
mod roofline;
mod sections;
mod svg;
mod trace;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use read::Folder;

#[derive(Args)]
pub(crate) struct ReportArgs {
    /// Records (--save), traces (--trace) and lines of `ocelli kernels bench --json` (.jsonl)
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Earlier runs to compare with
    #[arg(long, value_name = "DIR")]
    compare: Option<PathBuf>,
    /// The page; DIR/report.html when left out
    #[arg(short, long, value_name = "FILE.html")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &ReportArgs) -> Result<()> {
    let folder = Folder::read(&args.folder)?;
    let before = args.compare.as_deref().map(Folder::read).transpose()?;
    let file = args.output.clone().unwrap_or_else(|| args.folder.join("report.html"));
    fs::write(&file, sections::page(&folder, before.as_ref()))
        .with_context(|| format!("cannot write {} (--output)", file.display()))?;
    for (name, why) in [Some(&folder), before.as_ref()].into_iter().flatten().flat_map(|folder| &folder.skipped) {
        super::super::tell(format_args!("not read: {name}: {why}"));
    }
    Ok(writeln!(io::stdout(), "{}", file.display())?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn report(folder: &Path, output: Option<PathBuf>) -> Result<()> {
        run(&ReportArgs { folder: folder.to_owned(), compare: None, output })
    }

    #[test]
    fn the_page_is_written_into_the_folder_or_where_it_is_wanted() {
        let here = tempfile::tempdir().unwrap();
        fs::copy("tests/report/run/trace.json", here.path().join("trace.json")).unwrap();
        report(here.path(), None).unwrap();
        let page = fs::read_to_string(here.path().join("report.html")).unwrap();
        assert!(page.starts_with("<!doctype html>") && page.contains("llava-1.5-7b on NVIDIA H200"));
        let wanted = here.path().join("page.html");
        report(here.path(), Some(wanted.clone())).unwrap();
        assert_eq!(
            fs::read_to_string(wanted).unwrap(),
            page,
            "a page is not read as a run, and says nothing of itself"
        );
        let nowhere = here.path().join("no/page.html");
        assert!(format!("{:#}", report(here.path(), Some(nowhere)).unwrap_err()).contains("(--output)"));
    }
}
