//! Where a record goes: to the terminal, to a file, and beside an earlier one.

use std::env;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::super::tell;
use super::baseline::Baseline;
use super::record::{Bench, Record};
use super::table::table;

#[derive(Args)]
pub(super) struct OutcomeArgs {
    /// One JSON object instead of the table
    #[arg(long)]
    json: bool,
    /// Also write the JSON object to a file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compare with what an earlier run saved; exit code 1 if a figure is slower than its spread explains
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
}

/// Where the record will go, found out before anything is measured.
pub(super) struct Outcome {
    json: bool,
    save: Option<(File, String)>,
    baseline: Option<Baseline>,
}

impl OutcomeArgs {
    /// Open the file to write, and read the one to compare with.
    ///
    /// # Errors
    /// If either cannot be done.
    pub fn open(&self, bench: Bench) -> Result<Outcome> {
        let baseline = self.baseline.as_ref().map(|path| Baseline::read(path, bench)).transpose()?;
        let save = self.save.as_ref().map(|path| {
            let name = format!("{} (--save)", path.display());
            // An earlier record stays until there is a new one.
            let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
            file.with_context(|| name.clone()).map(|file| (file, name))
        });
        Ok(Outcome { json: self.json, save: save.transpose()?, baseline })
    }
}

impl Outcome {
    /// Print the record, save it, and compare it.
    ///
    /// # Errors
    /// If it cannot be written or compared, or a figure is slower than it was.
    pub fn tell(self, record: &Record) -> Result<()> {
        let json = serde_json::to_string_pretty(record).context("writing the record as JSON")? + "\n";
        let text = if self.json { json.clone() } else { table(record) };
        io::stdout().write_all(text.as_bytes())?;
        if let Some((mut file, name)) = self.save {
            file.set_len(0).and_then(|()| file.write_all(json.as_bytes())).with_context(|| name)?;
        }
        let Some(baseline) = self.baseline else { return Ok(()) };
        let comparison = baseline.compare(record)?;
        // There is one object on stdout, or there are two tables.
        if self.json {
            tell(format_args!("{}", comparison.table.trim_end()));
        } else {
            write!(io::stdout(), "\n{}", comparison.table)?;
        }
        match comparison.slower.as_slice() {
            [] => Ok(()),
            slower => bail!("slower than before: {}", slower.join("; ")),
        }
    }
}

/// The arguments as they were given, but for a key; behind them what the environment said.
pub(super) fn command() -> String {
    let text = |word: OsString| word.to_string_lossy().into_owned();
    let said = env::vars_os().map(|(name, value)| (text(name), text(value)));
    without_secrets(env::args_os().map(text)) + &environment(said)
}

/// The twins of flags that were set: ` # OCELLI_DTYPE=f16`. A figure depends on them as on any flag.
fn environment(variables: impl Iterator<Item = (String, String)>) -> String {
    let ours = variables.filter(|(name, _)| name.starts_with("OCELLI_") && name != "OCELLI_API_KEY");
    let mut words: Vec<String> = ours.map(|(name, value)| format!("{name}={}", quoted(&value))).collect();
    words.sort();
    if words.is_empty() { String::new() } else { format!(" # {}", words.join(" ")) }
}

fn without_secrets(given: impl Iterator<Item = String>) -> String {
    let mut words = Vec::new();
    let mut hide = false;
    for (i, arg) in given.enumerate() {
        let arg = if i == 0 { "ocelli".to_owned() } else { arg };
        words.push(match arg.strip_prefix("--api-key=") {
            _ if hide => "***".into(),
            Some(_) => "--api-key=***".into(),
            None => quoted(&arg),
        });
        hide = !hide && arg == "--api-key";
    }
    words.join(" ")
}

/// As a shell takes it.
fn quoted(arg: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !arg.is_empty() && arg.chars().all(plain) { arg.into() } else { format!("'{}'", arg.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_can_be_given_again_and_keeps_no_key() {
        let words = |args: &[&str]| without_secrets(args.iter().map(|arg| (*arg).to_owned()));
        assert_eq!(
            words(&["/usr/bin/ocelli", "bench", "serve", "--api-key", "sesame", "--api-key=open", "--seed", "1"]),
            "ocelli bench serve --api-key *** --api-key=*** --seed 1"
        );
        assert_eq!(words(&["o", "a b", "it's", ""]), r"ocelli 'a b' 'it'\''s' ''");
        let variables = [("PATH", "/bin"), ("OCELLI_KERNEL_DIR", "my new"), ("OCELLI_API_KEY", "sesame")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(environment(variables.into_iter()), " # OCELLI_KERNEL_DIR='my new'");
        assert_eq!(environment([].into_iter()), "");
    }
}
