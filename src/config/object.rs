//! Reading a settings object field by field, and accounting for every field.

use std::collections::BTreeSet;
use std::fmt::Display;

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value};

use super::json::{shown, shown_key};

/// Where a present `null` means the same as an absent field. Elsewhere it is an error, as it is in transformers.
#[derive(Clone, Copy)]
pub(super) enum Nulls {
    /// In these fields.
    In(&'static [&'static str]),
    /// In all fields.
    Everywhere,
}

/// An object of a settings file. It remembers which fields were read, so that [`Object::finish`] can refuse the rest.
pub(super) struct Object<'a> {
    /// What stands before a field's name in an error: `config.json: text_config.`
    prefix: String,
    fields: &'a Map<String, Value>,
    nulls: Nulls,
    read: BTreeSet<&'static str>,
}

impl<'a> Object<'a> {
    /// The outermost object of `file`.
    pub fn new(file: &str, fields: &'a Map<String, Value>, nulls: Nulls) -> Object<'a> {
        Object { prefix: format!("{file}: "), fields, nulls, read: BTreeSet::new() }
    }

    /// A field's full name.
    pub fn at(&self, key: &str) -> String {
        format!("{}{}", self.prefix, shown_key(key))
    }

    /// The field as it is, absent when it is a `null` that means so.
    pub fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.read.insert(key);
        let nullable = match self.nulls {
            Nulls::Everywhere => true,
            Nulls::In(fields) => fields.contains(&key),
        };
        self.fields.get(key).filter(|value| !(nullable && value.is_null()))
    }

    /// The field through `convert`, which returns nothing for a value that is not `expected`.
    pub fn read<T>(
        &mut self,
        key: &'static str,
        expected: impl Display,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match convert(value) {
            Some(value) => Ok(Some(value)),
            None => bail!("{} = {}; expected {expected}", self.at(key), shown(value)),
        }
    }

    /// A number of things: 1 to `max`.
    pub fn size(&mut self, key: &'static str, max: usize) -> Result<Option<usize>> {
        self.read(key, format!("a whole number from 1 to {max}"), |value| size(value, max))
    }

    /// A finite number for which `allowed` holds.
    pub fn number(&mut self, key: &'static str, expected: &str, allowed: impl Fn(f64) -> bool) -> Result<Option<f64>> {
        self.read(key, expected, |value| value.as_f64().filter(|&x| x.is_finite() && allowed(x)))
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    /// Text that names one of a few choices.
    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Result<Option<T>> {
        let names: Vec<_> = choices.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let find = |value: &Value| {
            let text = value.as_str()?;
            choices.iter().find(|(name, _)| *name == text).map(|&(_, choice)| choice)
        };
        self.read(key, names.join(" or "), find)
    }

    /// One token id.
    pub fn token(&mut self, key: &'static str) -> Result<Option<u32>> {
        self.read(key, "a token id", token)
    }

    /// One token id or a list of them, without repetitions.
    pub fn tokens(&mut self, key: &'static str) -> Result<Option<Vec<u32>>> {
        let convert = |value: &Value| {
            let mut ids = match value {
                Value::Array(items) => items.iter().map(token).collect::<Option<Vec<_>>>()?,
                one => vec![token(one)?],
            };
            ids.sort_unstable();
            ids.dedup();
            (!ids.is_empty() && ids.len() <= 64).then_some(ids)
        };
        self.read(key, "a token id or a list of 1 to 64 token ids", convert)
    }

    /// How many; 0 is allowed.
    pub fn count(&mut self, key: &'static str, max: u32) -> Result<Option<u32>> {
        let convert = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n <= max);
        self.read(key, format!("a whole number from 0 to {max}"), convert)
    }

    /// An object inside this one. `nulls` as for [`Object::new`].
    pub fn object(&mut self, key: &'static str, nulls: Nulls) -> Result<Option<Object<'a>>> {
        let fields = self.read(key, "an object", Value::as_object)?;
        let prefix = format!("{}{key}.", self.prefix);
        Ok(fields.map(|fields| Object { prefix, fields, nulls, read: BTreeSet::new() }))
    }

    /// A field of which one value can be computed: absent, `null` or that value.
    pub fn only(&mut self, key: &'static str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        match self.get(key) {
            Some(found) if !found.is_null() && !same(found, &value) => {
                bail!("{} = {} is not supported; only {value} is", self.at(key), shown(found))
            }
            _ => Ok(()),
        }
    }

    /// Which of two spellings of one field is there; `new` when neither is.
    ///
    /// # Errors
    /// When both are and contradict each other.
    pub fn spelled(&mut self, new: &'static str, old: &'static str) -> Result<&'static str> {
        match (self.get(new), self.get(old)) {
            (Some(a), Some(b)) if !same(a, b) => bail!(
                "{} = {} contradicts {} = {}; they are two names of one field, so remove one",
                self.at(new),
                shown(a),
                self.at(old),
                shown(b)
            ),
            (None, Some(_)) => Ok(old),
            _ => Ok(new),
        }
    }

    /// Ends the reading. `inert` are the fields that are known to have no effect on inference.
    ///
    /// # Errors
    /// When a field was neither read nor inert: nobody knows what it would change.
    pub fn finish(&self, inert: &[&[&str]]) -> Result<()> {
        let known = |key: &str| self.read.contains(key) || inert.iter().any(|list| list.contains(&key));
        let unknown: Vec<_> = self.fields.iter().filter(|(key, _)| !known(key)).collect();
        let listed: Vec<_> =
            unknown.iter().take(10).map(|(key, value)| format!("{} = {}", self.at(key), shown(value))).collect();
        let more = match unknown.len().saturating_sub(listed.len()) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        ensure!(
            unknown.is_empty(),
            "unknown to this build: {}{more}. A field that might change the result is never skipped; remove what has \
             no effect",
            listed.join(", ")
        );
        Ok(())
    }
}

/// A whole number from 1 to `max`.
pub(super) fn size(value: &Value, max: usize) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=max).contains(n))
}

/// A token id. Vocabularies stay far below this limit; whether the id is in the vocabulary is checked where that is
/// known.
fn token(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|&id| id < 1 << 31)
}

/// Equality of settings: 1 and 1.0 are the same number.
fn same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}
