//! The figures that are committed: `benches/baselines/h200` holds records that `ocelli bench ... --save` wrote on the card and
//! lines of `ocelli kernels bench --json`, and README.md has a table that is made from them and from `peer.json`.
//!
//! `OCELLI_UPDATE_README=1 cargo test --test baselines` writes the table anew.

// The record as the program has it: its fields are written down once.
#[allow(dead_code)]
#[path = "../../src/cli/bench/record.rs"]
mod record;
#[allow(dead_code)]
#[path = "../../src/cli/bench/samples.rs"]
mod samples;

mod files;
mod readme;

use std::path::Path;
use std::{env, fs};

use files::Folder;
use readme::{Peer, block, replace};

const FOLDER: &str = "benches/baselines/h200";
const PEER: &str = "benches/baselines/peer.json";
const README: &str = "README.md";

#[test]
fn every_file_is_a_record_or_lines_of_kernels_and_names_its_machine() {
    if !Path::new(FOLDER).is_dir() {
        println!("{FOLDER} is not there: nothing was measured yet");
        return;
    }
    let folder = Folder::read(Path::new(FOLDER)).unwrap_or_else(|error| panic!("{error}"));
    println!("{} records and {} files of kernels are sound", folder.records.len(), folder.kernels);
}

#[test]
fn the_peer_and_the_floors_have_sources() {
    Peer::parse(&fs::read_to_string(PEER).unwrap()).unwrap_or_else(|error| panic!("{PEER}: {error}"));
}

#[test]
fn the_table_of_the_readme_is_made_from_the_records() {
    let readme = fs::read_to_string(README).unwrap();
    if !readme.contains(readme::BEGIN) {
        println!("{README} has no {}: its figures are not checked", readme::BEGIN);
        return;
    }
    let folder = Folder::read(Path::new(FOLDER)).unwrap_or_else(|error| panic!("{error}"));
    let peer = Peer::parse(&fs::read_to_string(PEER).unwrap()).unwrap();
    let made = block(&folder.records, &peer).and_then(|block| replace(&readme, &block));
    let made = made.unwrap_or_else(|error| panic!("{error}"));
    if env::var_os("OCELLI_UPDATE_README").is_some() {
        fs::write(README, made).unwrap();
        return;
    }
    if let Some((was, is)) = readme.lines().zip(made.lines()).find(|(was, is)| was != is) {
        panic!(
            "{README} says\n{was}\nand the records say\n{is}\nOCELLI_UPDATE_README=1 cargo test --test baselines writes it"
        );
    }
    assert_eq!(readme, made, "OCELLI_UPDATE_README=1 cargo test --test baselines writes the table");
}
