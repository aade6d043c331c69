//! The output: what is in it already, and what is added.

use std::collections::{HashMap, HashSet, hash_map};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::input::{Lines, Text};
use super::line::{Asked, BEGINNING, Fault};
use super::{Outcome, Progress};

/// A `custom_id`, in a size that does not depend on it.
type Key = [u8; 16];

fn key(custom_id: &str) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(&blake3::hash(custom_id.as_bytes()).as_bytes()[..16]);
    key
}

/// Which lines have an answer, and whether that is an error.
#[derive(Debug, Default)]
pub(super) struct Done {
    by_custom_id: HashMap<Key, bool>,
    /// Lines without a `custom_id` of their own.
    by_number: HashSet<u64>,
    /// Where the input had a `custom_id` first.
    seen: HashMap<Key, u64>,
}

/// The file of answers, open to add to.
#[derive(Debug)]
pub(super) struct Record {
    file: File,
    path: PathBuf,
}

/// A line of the output, as far as it says whose answer it is.
#[derive(Deserialize)]
struct Known {
    id: String,
    custom_id: Option<String>,
    #[serde(rename = "response")]
    _response: IgnoredAny,
    error: Option<IgnoredAny>,
}

impl Done {
    /// Whether a request is to be answered now: `Ok` is the request; `Err` if it has an answer, and whether that is an error.
    ///
    /// # Errors
    /// If an earlier line has the same `custom_id`.
    pub fn admit(&mut self, asked: Asked) -> Result<Result<Asked, bool>, Fault> {
        let key = key(&asked.who.custom_id);
        match self.seen.entry(key) {
            hash_map::Entry::Occupied(earlier) => Err(asked.who.repeats(*earlier.get())),
            hash_map::Entry::Vacant(place) => {
                place.insert(asked.who.number);
                Ok(self.by_custom_id.get(&key).map_or(Ok(asked), |&failed| Err(failed)))
            }
        }
    }

    /// Whether the error of a line without a `custom_id` of its own is there already.
    pub fn has_fault(&self, fault: &Fault) -> bool {
        self.by_number.contains(&fault.number)
    }
}

impl Record {
    /// Open the file, or begin it. Half a line at its end, which a kill left, is cut off.
    ///
    /// # Errors
    /// If somebody else writes it, or it holds something else than answers.
    pub fn open(path: &Path) -> Result<(Record, Done)> {
        let shown = || path.display().to_string();
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).with_context(shown)?;
        // Where the file system has no locks, nobody can know.
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            bail!("{} is being written by another run; wait for it, or name another file", shown());
        }
        let (mut done, mut whole) = (Done::default(), 0);
        let mut lines = Lines::new(BufReader::new(&file), usize::MAX);
        while let Some(line) = lines.next().with_context(shown)? {
            match line.text {
                Text::Whole(text) if !line.ended => {
                    let half = text.len().min(BEGINNING.len());
                    ensure!(
                        text[..half] == BEGINNING.as_bytes()[..half],
                        "{} ends in a line that is no answer of a batch; name another file for the answers",
                        shown()
                    );
                    break;
                }
                Text::Whole(text) => done.note(&text).with_context(|| {
                    let number = line.number;
                    format!("line {number} of {} is no answer of a batch; name another file for the answers", shown())
                })?,
                Text::Blank | Text::TooLong => {}
            }
            whole += line.bytes;
        }
        file.set_len(whole).with_context(shown)?;
        Ok((Record { file, path: path.to_path_buf() }, done))
    }

    /// Write a line down, whole.
    pub fn write(&mut self, outcome: Outcome, progress: &mut Progress) -> Result<()> {
        match outcome {
            Outcome::Kept { failed } => {
                progress.kept += 1;
                progress.kept_failed += u64::from(failed);
            }
            Outcome::Answered(answered) => {
                // In one piece, behind all others: the file was opened to append.
                self.file.write_all(answered.text.as_bytes()).with_context(|| self.path.display().to_string())?;
                *(if answered.failed { &mut progress.failed } else { &mut progress.answered }) += 1;
                progress.prompt_tokens += answered.prompt_tokens;
                progress.completion_tokens += answered.completion_tokens;
            }
            Outcome::Fatal(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// All is written; let it reach the disk.
    pub fn close(self) -> Result<()> {
        self.file.sync_all().with_context(|| self.path.display().to_string())
    }
}

impl Done {
    fn note(&mut self, text: &[u8]) -> Result<()> {
        let known: Known = serde_json::from_slice(text)?;
        let number = known.id.strip_prefix("batch_req_").and_then(|number| number.parse().ok());
        let number = number.with_context(|| format!("id is {:?}", known.id))?;
        match known.custom_id {
            Some(custom_id) => {
                self.by_custom_id.insert(key(&custom_id), known.error.is_some());
            }
            None => {
                self.by_number.insert(number);
            }
        }
        Ok(())
    }
}
