//! The table of the README, from records, the peer's figures and the floors.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::record::{Ceilings, Figure, Record};

/// What stands before and behind the table.
pub const BEGIN: &str = "<!-- figures: begin -->";
/// See [`BEGIN`].
pub const END: &str = "<!-- figures: end -->";

/// What the records are put beside, and which figures of them are shown.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name.
    peer: String,
    /// How its figures came about, in words.
    peer_source: String,
    /// How the floors did.
    floor_source: String,
    rows: Vec<Row>,
}

/// A line of the table.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// File name of the record.
    record: String,
    figure: String,
    /// In words.
    what: String,
    /// The peer's figure, in the same unit.
    peer: Option<f64>,
    /// Plans that must run for it, one after another.
    least: Vec<Least>,
}

/// What a plan moves and computes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Least {
    /// The command that prints it.
    plan: String,
    bytes: f64,
    flops: f64,
}

impl Peer {
    /// Read the file, all of whose sources must be named.
    pub fn parse(text: &str) -> Result<Peer, String> {
        let peer: Peer = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if [&peer.peer, &peer.peer_source, &peer.floor_source].iter().any(|words| words.trim().is_empty()) {
            return Err("a source is empty".into());
        }
        let wrong = |least: &&Least| !least.plan.starts_with("ocelli plan ") || least.bytes <= 0.0 || least.flops < 0.0;
        match peer.rows.iter().flat_map(|row| &row.least).find(wrong) {
            Some(least) => Err(format!("\"{}\" is no plan with a cost", least.plan)),
            None => Ok(peer),
        }
    }
}

/// The table, and below it where its figures come from.
pub fn block(records: &BTreeMap<String, Record>, peer: &Peer) -> Result<String, String> {
    let mut text = format!("| model | | ocelli | {} | floor |\n|---|---|---|---|---|\n", peer.peer);
    let mut machines: Vec<String> = Vec::new();
    for row in &peer.rows {
        let record = records.get(&row.record).ok_or_else(|| format!("there is no record {}", row.record))?;
        let figure = record.figures.get(&row.figure);
        let figure = figure.ok_or_else(|| format!("{} has no figure {}", row.record, row.figure))?;
        let theirs = row.peer.map_or_else(String::new, |value| format!("{} {}", number(value), figure.unit));
        let floor = floor(row, figure, record.ceilings.as_ref())?;
        let cells = [record.model.clone(), row.what.clone(), ours(figure), theirs, floor];
        text += &format!("| {} |\n", cells.map(|cell| cell.replace('|', "\\|")).join(" | "));
        let (day, driver) = (record.date.split('T').next().unwrap_or_default(), record.driver.as_deref());
        let machine = format!("{}, driver {}, {day}", record.gpu, driver.unwrap_or("unknown"));
        if !machines.contains(&machine) {
            machines.push(machine);
        }
    }
    text += &format!(
        "\n{}. Medians, and the smallest and the largest median of a repeat. Peer: {}. Floor: {}.\n",
        machines.join("; "),
        peer.peer_source,
        peer.floor_source
    );
    Ok(text)
}

/// The median with the medians of its repeats.
fn ours(figure: &Figure) -> String {
    let (low, high) = figure.range();
    let range =
        if figure.repeats.len() > 1 { format!(" ({} .. {})", number(low), number(high)) } else { String::new() };
    format!("{} {}{range}", number(figure.median), figure.unit)
}

/// The least time of the plans at the ceilings of the same run.
fn floor(row: &Row, figure: &Figure, ceilings: Option<&Ceilings>) -> Result<String, String> {
    if row.least.is_empty() {
        return Ok(String::new());
    }
    if figure.unit != "ms" {
        return Err(format!("{} of {} is in {}: only a time has a floor", row.figure, row.record, figure.unit));
    }
    let ceilings = ceilings.ok_or_else(|| format!("{} has no ceilings", row.record))?;
    let ms = |l: &Least| (l.bytes / ceilings.read_gb_s / 1e6).max(l.flops / ceilings.matrix_tflop_s / 1e9);
    Ok(format!("{} ms", number(row.least.iter().map(ms).sum())))
}

/// Three digits, or all of them before the point.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 99.95 => 0,
        size if size >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.decimals$}")
}

/// The README with another table between its marks.
pub fn replace(readme: &str, block: &str) -> Result<String, String> {
    let parts = readme.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, behind) = parts.ok_or_else(|| format!("there is no {BEGIN} with a {END} behind it"))?;
    Ok(format!("{before}{BEGIN}\n{block}{END}{behind}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;

    fn peer() -> Peer {
        let text = r#"{"peer": "vLLM 0.24", "peer_source": "another day", "floor_source": "plans", "rows": [
            {"record": "a.json", "figure": "ttft_ms", "what": "first|token", "peer": 49.8, "least": [
                {"plan": "ocelli plan encode", "bytes": 4e8, "flops": 1},
                {"plan": "ocelli plan prefill", "bytes": 1, "flops": 7.81e12}]},
            {"record": "a.json", "figure": "decode_gb_s", "what": "reads", "peer": null, "least": []}]}"#;
        Peer::parse(text).unwrap()
    }

    /// Ceilings are 400 GB/s and 781 TFLOP/s.
    fn records() -> BTreeMap<String, Record> {
        BTreeMap::from([("a.json".to_owned(), record(&[vec![16.0], vec![17.25], vec![16.9]]))])
    }

    const TABLE: &str = "| model | | ocelli | vLLM 0.24 | floor |\n\
        |---|---|---|---|---|\n\
        | llava-1.5-7b | first\\|token | 16.9 ms (16.0 .. 17.2) | 49.8 ms | 11.0 ms |\n\
        | llava-1.5-7b | reads | 16.9 GB/s (16.0 .. 17.2) |  |  |\n\
        \n\
        NVIDIA H200, driver 580.159.04 (CUDA 13.0), 2026-11-22. Medians, and the smallest and the largest median of a repeat. \
        Peer: another day. Floor: plans.\n";

    #[test]
    fn the_table_says_what_the_records_say() {
        assert_eq!(block(&records(), &peer()).unwrap(), TABLE);
    }

    #[test]
    fn a_changed_digit_is_another_readme() {
        let readme = format!("# x\n\n{BEGIN}\n{TABLE}{END}\n\nmore\n");
        let made = replace(&readme, &block(&records(), &peer()).unwrap()).unwrap();
        assert_eq!(made, readme);
        let changed = readme.replace("16.9 ms", "16.8 ms");
        assert_ne!(changed, readme);
        let made = replace(&changed, &block(&records(), &peer()).unwrap()).unwrap();
        assert_eq!(made, readme, "what is written anew is right again");
        assert_ne!(made, changed, "and so the change is seen");
        assert!(replace("# x", TABLE).is_err() && replace(&format!("{END} {BEGIN}"), TABLE).is_err());
    }

    #[test]
    fn what_a_row_asks_for_must_be_there() {
        let error = |change: fn(&mut Peer)| {
            let mut peer = peer();
            change(&mut peer);
            block(&records(), &peer).unwrap_err()
        };
        assert_eq!(error(|p| p.rows[0].record = "b.json".into()), "there is no record b.json");
        assert_eq!(error(|p| p.rows[0].figure = "x_ms".into()), "a.json has no figure x_ms");
        let moved = error(|p| p.rows[1].least = std::mem::take(&mut p.rows[0].least));
        assert_eq!(moved, "decode_gb_s of a.json is in GB/s: only a time has a floor");
        let mut host = records();
        host.values_mut().for_each(|record| record.ceilings = None);
        assert_eq!(block(&host, &peer()).unwrap_err(), "a.json has no ceilings");
        let parsed = Peer::parse(r#"{"peer": "x", "peer_source": " ", "floor_source": "y", "rows": []}"#);
        assert_eq!(parsed.err().unwrap(), "a source is empty");
    }
}
