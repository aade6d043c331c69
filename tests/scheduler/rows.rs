//! Pictures whose places show some of their rows, some twice, and rows of the model's own between them.

use ocelli::engine::{PictureKey, Place, Scheduler, SchedulerLimits, Sequence};
use ocelli::models::{ImageRow, RowMap};

use super::{run, wide};

/// Picture `n` at position `start`: of one, two or three tiles, the last of them not full. Every other one is as the
/// projector gives it; the rest leave rows out, put others between them and end with their first again.
pub(super) fn picture(n: u8, start: usize) -> Place {
    let more = usize::from(n % 3);
    let encoded = 10 + 14 * more;
    let shown = |row: usize| {
        let kept = (row % 7 != 3).then_some(ImageRow::Encoded(row));
        kept.into_iter().chain((row % 5 == 4).then_some(ImageRow::Constant(row % 2)))
    };
    let rows = match n % 2 {
        0 => RowMap::straight(encoded),
        _ => RowMap::listed(encoded, (0..encoded).flat_map(shown).chain([ImageRow::Encoded(0)])),
    };
    Place { start, rows, tiles: 1 + more, key: PictureKey([n; 32]) }
}

fn limits() -> SchedulerLimits {
    SchedulerLimits { pages: 4, page_rows: 4, first_row: 100, constant_row: 500, ..wide() }
}

#[test]
fn places_show_the_rows_that_the_picture_lists() {
    let mut s = Scheduler::new(limits()).unwrap();
    let shown = [
        ImageRow::Encoded(5),
        ImageRow::Constant(0),
        ImageRow::Encoded(0),
        ImageRow::Encoded(3),
        ImageRow::Constant(2),
        ImageRow::Encoded(5),
    ];
    // Six rows in two pages of four.
    let place = |key| Place { start: 1, rows: RowMap::listed(6, shown), tiles: 2, key: PictureKey([key; 32]) };
    let ids = [&[7][..], &[-1; 6], &[8]].concat();
    s.add(Sequence::new(1, ids.clone(), vec![place(1)], 20, "")).unwrap();
    let step = run(&mut s);
    let pages: Vec<i32> = step.encode[0].pages.iter().map(|&p| p as i32).collect();
    assert_eq!(pages.len(), 2);
    let row = |r: i32| -1 - (100 + pages[r as usize / 4] * 4 + r % 4);
    assert_eq!(step.rows[0].ids, [7, row(5), -1 - 500, row(0), row(3), -1 - 502, row(5), 8]);
    // In chunks it is the same, whatever else has rows in the step.
    let mut s = Scheduler::new(SchedulerLimits { max_num_batched_tokens: 3, max_num_seqs: 1, ..limits() }).unwrap();
    s.add(Sequence::new(1, ids, vec![place(1)], 20, "")).unwrap();
    let chunks: Vec<_> = (0..3).flat_map(|_| run(&mut s).rows.remove(0).ids).collect();
    assert_eq!(chunks, step.rows[0].ids);
}

/// Room is needed for the rows that encoding gives, not for the places.
#[test]
fn a_picture_takes_pages_for_its_encoded_rows() {
    let mut s = Scheduler::new(limits()).unwrap();
    let shows = |id, encoded, places: usize| {
        let rows = RowMap::listed(encoded, (0..places).map(|_| ImageRow::Encoded(0)));
        let place = Place { start: 0, rows, tiles: 1, key: PictureKey([id as u8; 32]) };
        Sequence::new(id, vec![-1; places + 1], vec![place], places + 9, "")
    };
    let error = s.add(shows(1, 17, 3)).unwrap_err().to_string();
    assert!(error.contains("17 image rows") && error.contains("room for 14 tiles and 16 image rows"), "{error}");
    assert!(s.add(shows(2, 0, 0)).is_err(), "a picture without a row");
    s.add(shows(3, 5, 40)).unwrap();
    assert_eq!(run(&mut s).encode[0].pages.len(), 2);
}

/// A step encodes a picture and is lost, with one before it in flight that has a row of the same sequence: whoever comes
/// later must not find what was never computed.
#[test]
fn a_picture_of_a_lost_step_is_not_found() {
    let limits = SchedulerLimits { max_num_batched_tokens: 8, max_num_seqs: 2, prefix_caching: false, ..limits() };
    let mut s = Scheduler::new(limits).unwrap();
    let shows = |id| {
        let place = Place { start: 8, rows: RowMap::straight(4), tiles: 1, key: PictureKey([1; 32]) };
        Sequence::new(id, [&[7; 8][..], &[-1; 4]].concat(), vec![place], 20, "")
    };
    s.add(shows(1)).unwrap();
    let (text, picture) = (s.schedule(), s.schedule());
    assert_eq!((text.encode.len(), picture.encode.len()), (0, 1));
    assert_eq!([s.failed(&picture), s.failed(&text)], [vec![1], vec![]]);
    s.check().unwrap();
    s.add(shows(2)).unwrap();
    assert_eq!([run(&mut s).encode.len(), run(&mut s).encode.len()], [0, 1]);
}
