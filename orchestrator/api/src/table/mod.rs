//! kubectl's columns. meta/v1 Table.

mod pod;
mod rows;

use std::fmt::Write as _;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::Object;
use crate::resource::Resource;

pub use pod::{Summary, condition, summary};
pub(crate) use rows::{access_modes, event_source, plain_selector, selector};

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Header, as in `Ready`.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the name column.
    pub format: &'static str,
    /// 0 is always shown, 1 only when wide.
    pub priority: u8,
}

/// A row: one object's cells.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// One per column.
    pub cells: Vec<Value>,
    /// The object.
    pub object: Object,
}

/// Objects as kubectl lists them.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// Headers.
    pub columns: Vec<Column>,
    /// Rows, in the order given.
    pub rows: Vec<Row>,
}

/// The table of `objects`; `wide` keeps the columns of priority 1.
///
/// The server sends all of them (`wide` = true), and leaves it to the client which to show.
pub fn table(resource: &Resource, objects: &[Object], wide: bool, now: Timestamp) -> Table {
    let (columns, cells) = rows::of(if resource.kind == "PetSet" { "StatefulSet" } else { resource.kind });
    let shown = |column: &&Column| wide || column.priority == 0;
    let row = |object: &Object| {
        let pairs = columns.iter().zip(cells(object, now));
        let cells = pairs.filter(|(column, _)| shown(column)).map(|(_, cell)| cell).collect();
        Row { cells, object: object.clone() }
    };
    Table {
        columns: columns.iter().filter(shown).copied().collect(),
        rows: objects.iter().map(row).collect(),
    }
}

/// How much of the object travels in each row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// `PartialObjectMetadata`; what kubectl gets unless it asks.
    #[default]
    Metadata,
    /// All.
    Object,
}

impl Table {
    /// The body that travels.
    pub fn to_json(&self, resource_version: u64, include: IncludeObject) -> Value {
        let columns: Vec<Value> = self
            .columns
            .iter()
            .map(|c| {
                json!({"name": c.name, "type": c.kind, "format": c.format, "description": "", "priority": c.priority})
            })
            .collect();
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| match include {
                IncludeObject::None => json!({"cells": row.cells}),
                IncludeObject::Metadata => json!({"cells": row.cells, "object": {
                    "kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": row.object.0["metadata"],
                }}),
                IncludeObject::Object => json!({"cells": row.cells, "object": row.object.0}),
            })
            .collect();
        json!({
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": {"resourceVersion": resource_version.to_string()},
            "columnDefinitions": columns,
            "rows": rows,
        })
    }

    /// The text kubectl prints: upper-case headers, columns padded by three spaces.
    pub fn to_text(&self) -> String {
        let header = self.columns.iter().map(|column| column.name.to_uppercase()).collect();
        let rows = self.rows.iter().map(|row| row.cells.iter().map(cell_text).collect());
        aligned(&std::iter::once(header).chain(rows).collect::<Vec<_>>(), 3)
    }

    /// The same table with a first column NAMESPACE, as for `get -A`.
    #[must_use]
    pub fn with_namespace(mut self) -> Table {
        self.columns.insert(0, Column { name: "Namespace", kind: "string", format: "", priority: 0 });
        for row in &mut self.rows {
            row.cells.insert(0, row.object.namespace().into());
        }
        self
    }

    /// The same table with each name written `kind/name`, as when several kinds are listed together.
    #[must_use]
    pub fn with_kind(mut self, resource: &Resource) -> Table {
        let prefix = match resource.group {
            "" => resource.singular.to_string(),
            group => format!("{}.{group}", resource.singular),
        };
        if let Some(at) = self.columns.iter().position(|column| column.format == "name") {
            for row in &mut self.rows {
                row.cells[at] = format!("{prefix}/{}", cell_text(&row.cells[at])).into();
            }
        }
        self
    }
}

/// Lines of cells in columns, padded by `gap` spaces, without trailing ones.
pub fn aligned(lines: &[Vec<String>], gap: usize) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        for (column, cell) in line.iter().enumerate() {
            let width = cell.chars().count() + gap;
            match widths.get_mut(column) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for line in lines {
        let mut padded = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(padded, "{cell:width$}");
        }
        text.push_str(padded.trim_end());
        text.push('\n');
    }
    text
}

/// A text fit for one line of a terminal: control characters, which could steer it, are escaped.
pub fn printable(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        if c.is_control() { safe.extend(c.escape_default()) } else { safe.push(c) }
    }
    safe
}

fn cell_text(cell: &Value) -> String {
    match cell {
        Value::String(text) => printable(text),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
