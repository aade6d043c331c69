//! Which image row stands at each place of a picture.

use std::sync::Arc;

/// What stands at one place of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageRow {
    /// A row that encoding the picture gives, counted over all of its tiles.
    Encoded(usize),
    /// A row of the model's own, the same for every picture: a separator.
    Constant(usize),
}

/// The places of a picture in a sequence, in their order, and which row each one shows. A row may stand at several
/// places or at none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowMap {
    encoded: usize,
    constants: usize,
    places: Places,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Places {
    /// Every encoded row once, in order.
    Straight,
    /// An encoded row, or `-1 -` a constant one.
    Listed(Arc<[i32]>),
}

impl RowMap {
    /// Every one of `rows` encoded rows at a place, in order.
    pub fn straight(rows: usize) -> RowMap {
        RowMap { encoded: rows, constants: 0, places: Places::Straight }
    }

    /// Places that show what `places` says, of `encoded` encoded rows.
    ///
    /// # Panics
    /// If a place shows an encoded row that there is not.
    pub fn listed(encoded: usize, places: impl IntoIterator<Item = ImageRow>) -> RowMap {
        let place = |row| match row {
            ImageRow::Encoded(row) => {
                assert!(row < encoded, "a place shows encoded row {row} of {encoded}");
                row as i32
            }
            ImageRow::Constant(row) => -1 - row as i32,
        };
        let places: Arc<[i32]> = places.into_iter().map(place).collect();
        let constants = places.iter().min().map_or(0, |&lowest| usize::try_from(-i64::from(lowest)).unwrap_or(0));
        RowMap { encoded, constants, places: Places::Listed(places) }
    }

    /// Places of the picture in a sequence: its tokens.
    pub fn len(&self) -> usize {
        match &self.places {
            Places::Straight => self.encoded,
            Places::Listed(places) => places.len(),
        }
    }

    /// Whether the picture takes no place at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows that encoding the picture gives, whether or not they are shown.
    pub fn encoded(&self) -> usize {
        self.encoded
    }

    /// One more than the last constant row that is shown; 0 where none is.
    pub fn constants(&self) -> usize {
        self.constants
    }

    /// What stands at place `i`, which must be below [`RowMap::len`].
    pub fn at(&self, i: usize) -> ImageRow {
        match &self.places {
            Places::Straight => ImageRow::Encoded(i),
            Places::Listed(places) => match usize::try_from(places[i]) {
                Ok(row) => ImageRow::Encoded(row),
                Err(_) => ImageRow::Constant(!places[i] as usize),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_show_what_was_listed() {
        let shown = [ImageRow::Encoded(3), ImageRow::Constant(0), ImageRow::Encoded(0), ImageRow::Constant(2)];
        let map = RowMap::listed(4, shown);
        assert_eq!((map.len(), map.encoded(), map.constants()), (4, 4, 3));
        assert_eq!((0..4).map(|i| map.at(i)).collect::<Vec<_>>(), shown);
        let straight = RowMap::straight(3);
        assert_eq!((straight.len(), straight.encoded(), straight.at(2)), (3, 3, ImageRow::Encoded(2)));
        assert_eq!(straight.constants(), 0);
    }
}
