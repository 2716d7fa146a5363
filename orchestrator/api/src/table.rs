//! kubectl's columns. meta/v1 Table.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::Object;
use crate::resource::Resource;
use crate::time;

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
pub fn table(_resource: &Resource, objects: &[Object], wide: bool, now: Timestamp) -> Table {
    let _ = wide;
    Table {
        columns: vec![
            Column { name: "Name", kind: "string", format: "name", priority: 0 },
            Column { name: "Age", kind: "string", format: "", priority: 0 },
        ],
        rows: objects
            .iter()
            .map(|object| Row {
                cells: vec![object.name().into(), time::age(object.creation_timestamp(), now).into()],
                object: object.clone(),
            })
            .collect(),
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
        let mut lines: Vec<Vec<String>> =
            vec![self.columns.iter().map(|column| column.name.to_uppercase()).collect()];
        lines.extend(self.rows.iter().map(|row| row.cells.iter().map(cell_text).collect()));
        let width = |column: usize| {
            lines.iter().filter_map(|line| line.get(column)).map(|c| c.chars().count()).max().unwrap_or(0) + 3
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let mut padded = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                padded.push_str(&format!("{cell:width$}"));
            }
            text.push_str(padded.trim_end());
            text.push('\n');
        }
        text
    }
}

fn cell_text(cell: &Value) -> String {
    match cell {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".into(),
        other => other.to_string(),
    }
}
