//! The environment in which chat templates run: what transformers gives them, with limits on what they may use.
//!
//! transformers compiles a template with `trim_blocks` and `lstrip_blocks` in a sandbox, with loop controls, a `tojson`
//! that does not escape HTML, `raise_exception`, `strftime_now` and a `{% generation %}` block. Python methods of
//! strings, lists and dicts come from minijinja-contrib.
//!
//! A template comes with the checkpoint, never with a request. Still it cannot hang the process, exhaust the stack or
//! write without end: steps, time and output are limited. What has no limit is memory for one value, so a template that
//! doubles a string in a loop can use up the machine's.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};

use super::tokenizer::MAX_TEXT_BYTES;

/// Most steps of the template engine in one rendering; a turn of a conversation takes some 50.
const FUEL: u64 = 200_000;
/// A value that a template nests costs some 250 bytes of stack a level to print or drop, and at most one step a level:
/// 50 MB with [`FUEL`] steps. Only what is used becomes real memory.
const STACK_BYTES: usize = 128 << 20;
/// Steps are counted, but one step may go over a sequence of up to a hundred million items.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Most output, in bytes. A disguised character may take four bytes where the real one takes one.
const MAX_OUTPUT_BYTES: usize = 4 * MAX_TEXT_BYTES;
/// Deepest value that `tojson` writes.
const MAX_JSON_DEPTH: usize = 64;

const NAME: &str = "chat";

/// A compiled template.
pub(super) struct Compiled {
    environment: Arc<Environment<'static>>,
}

impl Compiled {
    pub fn new(source: &str) -> Result<Compiled> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(print);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", tojson);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: &str| strftime(format, unix_now()));
        environment.add_template_owned(NAME, portable(source)).map_err(|e| anyhow!("{e}"))?;
        Ok(Compiled { environment: Arc::new(environment) })
    }

    /// Renders once for each of `contexts`, on a thread of its own whose stack the engine cannot exhaust.
    pub fn render(&self, contexts: Vec<Value>) -> Result<Vec<String>> {
        let environment = Arc::clone(&self.environment);
        let (sender, receiver) = mpsc::channel();
        let work = move || {
            let rendered = contexts.into_iter().map(|context| render(&environment, context)).collect::<Result<_>>();
            // The receiver is gone if this took too long.
            let _ = sender.send(rendered);
        };
        std::thread::Builder::new()
            .name("chat-template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(work)
            .context("cannot start a thread for the chat template")?;
        match receiver.recv_timeout(TIME_LIMIT) {
            Ok(rendered) => rendered,
            Err(RecvTimeoutError::Timeout) => bail!("it did not finish within {} s", TIME_LIMIT.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("the template engine panicked"),
        }
    }
}

fn render(environment: &Environment<'_>, context: Value) -> Result<String> {
    let template = environment.get_template(NAME)?;
    let mut output = Capped { bytes: Vec::new() };
    if let Err(error) = template.render_captured_to(context, &mut output) {
        let cause = innermost(&error);
        return Err(match cause.kind() {
            ErrorKind::OutOfFuel => anyhow!("it takes more than {FUEL} steps for this conversation"),
            ErrorKind::WriteFailure => anyhow!("its output is longer than {MAX_OUTPUT_BYTES} bytes"),
            _ => anyhow!("{cause}"),
        });
    }
    String::from_utf8(output.bytes).context("its output is not UTF-8")
}

/// Blocks and macros wrap the error of what they contain; what happened is the one inside.
fn innermost(error: &Error) -> &Error {
    let mut inner = error;
    while let Some(source) = std::error::Error::source(inner).and_then(|source| source.downcast_ref()) {
        inner = source;
    }
    inner
}

/// A buffer that refuses to grow over [`MAX_OUTPUT_BYTES`].
struct Capped {
    bytes: Vec<u8>,
}

impl io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > MAX_OUTPUT_BYTES.saturating_sub(self.bytes.len()) {
            return Err(io::Error::other("output limit"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Jinja's newline rule, and `{% generation %}`, which only marks text for training, as a condition that always holds.
fn portable(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(open) = rest.find("{%") {
        let (before, tag) = rest.split_at(open);
        out.push_str(before);
        let length = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(length);
        let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Prints as Python does where it differs: `True`, `False`, `None`.
fn print(out: &mut minijinja::Output, state: &mut minijinja::State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }).map_err(Error::from),
        ValueKind::None => out.write_str("None").map_err(Error::from),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// `json.dumps(value, ensure_ascii=False)`, with its `indent`.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    if ascii == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: ensure_ascii=true is not supported"));
    }
    let mut out = String::new();
    write_json(&mut out, value, indent.map(|n| n.min(16)), 0)?;
    Ok(out)
}

fn write_json(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
    if depth > MAX_JSON_DEPTH || out.len() > MAX_OUTPUT_BYTES {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is too large"));
    }
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => write_json_string(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            let keys = value.try_iter()?;
            write_json_items(out, ['{', '}'], keys, indent, depth, |out, key| {
                write_json_string(out, &key.to_string());
                out.push_str(": ");
                write_json(out, &value.get_item(key)?, indent, depth + 1)
            })?;
        }
        ValueKind::Seq | ValueKind::Iterable => {
            write_json_items(out, ['[', ']'], value.try_iter()?, indent, depth, |out, item| {
                write_json(out, item, indent, depth + 1)
            })?;
        }
        other => return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: cannot write a {other}"))),
    }
    Ok(())
}

fn write_json_items(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl Iterator<Item = Value>,
    indent: Option<usize>,
    depth: usize,
    mut write: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let newline = |out: &mut String, level: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * level));
        }
    };
    out.push(open);
    let mut empty = true;
    for item in items {
        if !empty {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        newline(out, depth + 1);
        write(out, &item)?;
        empty = false;
    }
    if !empty {
        newline(out, depth);
    }
    out.push(close);
    Ok(())
}

fn write_json_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// The directives of `strftime` that chat templates use, for `seconds` since 1970 in UTC. Templates write dates with
/// it.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let name = |names: &[&'static str], index: u64| usize::try_from(index).ok().and_then(|i| names.get(i).copied());
    let month_name = name(&MONTHS, month - 1).unwrap_or_default();
    // 1970 began on a Thursday.
    let weekday = name(&WEEKDAYS, (days + 3) % 7).unwrap_or_default();
    let short = |name: &'static str| name.get(..3).unwrap_or(name).to_owned();

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let text = match chars.next() {
            Some('Y') => format!("{year}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b') => short(month_name),
            Some('A') => weekday.to_owned(),
            Some('a') => short(weekday),
            Some('%') => "%".to_owned(),
            other => {
                let directive = other.map_or("%".to_owned(), |c| format!("%{c}"));
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now: {directive} is not supported"),
                ));
            }
        };
        out.push_str(&text);
    }
    Ok(out)
}

/// Year, month and day of a day number since 1970-01-01, by counting 400-year cycles from March (H. Hinnant's method).
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(source: &str) -> Result<String> {
        let context = minijinja::context! { text => "a \"b\" <c>\n", list => vec![1, 2], flag => true, none => () };
        Compiled::new(source)?.render(vec![context])?.pop().context("no output")
    }

    #[test]
    fn prints_and_writes_json_as_python_does() {
        assert_eq!(rendered("{{ flag }} {{ none }} {{ missing }}|").unwrap(), "True None |");
        assert_eq!(rendered("{{ text | tojson }}").unwrap(), r#""a \"b\" <c>\n""#);
        assert_eq!(rendered("{{ {'k': list, 'a': none} | tojson }}").unwrap(), r#"{"k": [1, 2], "a": null}"#);
        assert_eq!(rendered("{{ list | tojson(indent=2) }}").unwrap(), "[\n  1,\n  2\n]");
    }

    #[test]
    fn generation_blocks_keep_their_text_and_whitespace_control() {
        let source = "a {%- generation -%} b {% endgeneration %}\nc{% generation %}\nd\n{%- endgeneration %}";
        assert_eq!(rendered(source).unwrap(), "ab cd");
    }

    #[test]
    fn dates_follow_the_calendar() {
        // date -u -d @951827696, @0 and @1704067199
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S %a", 951_827_696).unwrap(), "2000-02-29 12:34:56 Tue");
        assert_eq!(strftime("%A %d %B %y %I%p", 0).unwrap(), "Thursday 01 January 70 12AM");
        assert_eq!(strftime("%d %b %Y %I:%M%p%%", 1_704_067_199).unwrap(), "31 Dec 2023 11:59PM%");
        assert!(strftime("%Q", 0).is_err());
    }

    #[test]
    fn hostile_templates_end_in_errors() {
        let nested =
            "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}";
        let deep = "{% set ns = namespace(x=[]) %}{% for i in range(20000) %}{% set ns.x = [ns.x] %}{% endfor %}";
        for (source, expected) in [
            ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
            ("{% for i in range(9999) %}{{ 'x' * 100000 }}{% endfor %}", "longer than"),
            ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "recursion"),
            ("{% include 'chat' %}", "recursion"),
            (nested, "steps"),
            (&format!("{deep}{{{{ ns.x | tojson }}}}"), "too large"),
            ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
            ("{% import 'os' as os %}", "non-existing"),
            ("{{ messages.__class__ }}{{ 1 / 0 }}", ""),
            ("{% if %}", "syntax"),
        ] {
            let error = rendered(source).expect_err(source).to_string();
            assert!(error.contains(expected), "{source}: {error}");
        }
        // Printing it takes a few megabytes of stack, which the thread has.
        assert_eq!(rendered(&format!("{deep}{{{{ ns.x }}}}")).unwrap().len(), 40_002);
    }
}
