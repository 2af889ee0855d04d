//! A record's mods as changes of a batch.

use anabranch_core::{BatchBuilder, OldImage, Op, ValueRef};

use super::place;
use super::tables::Fit;
use crate::client::SpannerValue;
use crate::decode::{Capture, DataRecord, Mod, ModType, Values};
use crate::types;

/// Where a value of a row comes from.
enum Source<'a> {
    Value(&'a SpannerValue),
    NotSent,
}

/// Appends the mods of a record from place `from` on until the batch has `full` bytes; gives the
/// place of the next one.
///
/// # Errors
/// A sentence, if a value is none of its type, or a key is not whole.
pub(crate) fn append(
    batch: &mut BatchBuilder,
    record: &DataRecord,
    fit: &Fit,
    from: usize,
    full: usize,
) -> Result<usize, String> {
    let schema = batch.schema(&fit.table.schema);
    if from == 0 && fit.changed {
        batch.skip_to(place::schema_number(record.sequence));
        batch.change(Op::Schema, schema);
    }
    for (place, modification) in record.mods.iter().enumerate().skip(from) {
        batch.skip_to(place::mod_number(record.sequence, place));
        one(batch, schema, record, fit, modification)?;
        if batch.size() >= full {
            return Ok(place + 1);
        }
    }
    Ok(record.mods.len())
}

fn one(batch: &mut BatchBuilder, schema: usize, record: &DataRecord, fit: &Fit, of: &Mod) -> Result<(), String> {
    match record.mod_type {
        ModType::Insert => {
            batch.change(Op::Insert, schema);
            batch.new_row();
            row(batch, fit, &[&of.keys, &of.new])
        }
        ModType::Update => {
            batch.change(Op::Update, schema);
            // What is not among the old values has not changed: the new ones complete them.
            if record.capture == Capture::NewRowAndOldValues && is_whole(fit, &[&of.keys, &of.new]) {
                batch.old_row(OldImage::Full);
                row(batch, fit, &[&of.keys, &of.old, &of.new])?;
            }
            batch.new_row();
            row(batch, fit, &[&of.keys, &of.new])
        }
        ModType::Delete => {
            batch.change(Op::Delete, schema);
            if is_whole(fit, &[&of.keys, &of.old]) {
                batch.old_row(OldImage::Full);
                row(batch, fit, &[&of.keys, &of.old])
            } else {
                batch.old_row(OldImage::Key);
                row(batch, fit, &[&of.keys])
            }
        }
    }
}

/// Each column's value is that of the first of `images` that has one.
fn row(batch: &mut BatchBuilder, fit: &Fit, images: &[&Values]) -> Result<(), String> {
    let schema = &fit.table.schema;
    for (at, kind) in fit.table.kinds.iter().enumerate() {
        match source(fit, at, images) {
            Source::Value(value) => {
                types::push(batch, kind, value).map_err(|e| format!("the column {}: {e}", schema.columns[at].name))?;
            }
            Source::NotSent if schema.is_key(at) => {
                return Err(format!("the key column {} has no value", schema.columns[at].name));
            }
            Source::NotSent => batch.push(ValueRef::Unchanged),
        }
    }
    Ok(())
}

fn is_whole(fit: &Fit, images: &[&Values]) -> bool {
    (0..fit.places.len()).all(|at| matches!(source(fit, at, images), Source::Value(_)))
}

fn source<'a>(fit: &Fit, column: usize, images: &[&'a Values]) -> Source<'a> {
    let Some(place) = fit.places[column] else { return Source::NotSent };
    let found = images.iter().find_map(|image| image.iter().find(|(at, _)| *at == place));
    found.map_or(Source::NotSent, |(_, value)| Source::Value(value))
}
