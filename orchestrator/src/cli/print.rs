//! Output: tables that keep their widths, JSON, YAML, names.

use api::table::Table;
use api::{Object, Resource};
use serde::Serialize;
use serde_json::{Value, json};

use super::error::Error;
use super::jsonpath;
use super::{manifest, yaml};

/// Blanks between columns, as kubectl's.
const GAP: usize = 3;

/// What `-o` asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Columns.
    Table,
    /// More columns.
    Wide,
    /// The objects as JSON.
    Json,
    /// The objects as YAML.
    Yaml,
    /// `pod/web`
    Name,
    /// A template over each object.
    JsonPath(jsonpath::Template),
}

/// Reads what follows `-o`.
///
/// # Errors
/// What is allowed.
pub fn format(text: &str) -> Result<Format, String> {
    match text.split_once('=').unwrap_or((text, "")) {
        ("wide", "") => Ok(Format::Wide),
        ("json", "") => Ok(Format::Json),
        ("yaml", "") => Ok(Format::Yaml),
        ("name", "") => Ok(Format::Name),
        ("jsonpath", template) => jsonpath::Template::parse(template).map(Format::JsonPath),
        _ => Err(format!("{text:?} is not one of wide, yaml, json, name, jsonpath={{…}}")),
    }
}

/// JSON as kubectl indents it.
pub fn json(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    // A tree in memory always serialises; what could fail is only the writer.
    _ = value.serialize(&mut serializer);
    out.push(b'\n');
    String::from_utf8_lossy(&out).into_owned()
}

/// One object, or a list of several, in the formats that show whole objects; `None` for the others.
///
/// # Errors
/// `Usage` if a template does not fit.
pub fn whole(format: &Format, objects: &[Object], single: bool) -> Result<Option<String>, Error> {
    let shown: Vec<Value> = objects.iter().map(|object| without_managed_fields(object.0.clone())).collect();
    let document = || match shown.as_slice() {
        [one] if single => one.clone(),
        _ => json!({"apiVersion": "v1", "items": shown, "kind": "List", "metadata": {"resourceVersion": ""}}),
    };
    Ok(match format {
        Format::Table | Format::Wide => None,
        Format::Json => Some(json(&document())),
        Format::Yaml => Some(yaml::write(&document())),
        Format::Name => {
            let name = |object: &Object| match object.resource() {
                Some(resource) => manifest::title(resource, object.name()) + "\n",
                None => format!("{}/{}\n", object.kind().to_lowercase(), object.name()),
            };
            Some(objects.iter().map(name).collect())
        }
        Format::JsonPath(template) => Some(template.render(&document()).map_err(Error::Usage)?),
    })
}

fn without_managed_fields(mut object: Value) -> Value {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    object
}

/// Lines of cells under headers. Widths only grow, so that a watch stays readable.
#[derive(Debug, Default)]
pub struct Columns {
    widths: Vec<usize>,
}

impl Columns {
    /// Lays out lines; the first may be headers.
    pub fn lay_out(&mut self, lines: &[Vec<String>]) -> String {
        for line in lines {
            self.widths.resize(self.widths.len().max(line.len()), 0);
            for (cell, width) in line.iter().zip(&mut self.widths) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for line in lines {
            let mut row = String::new();
            for (cell, width) in line.iter().zip(&self.widths) {
                row.push_str(cell);
                row.extend(std::iter::repeat_n(' ', width + GAP - cell.chars().count()));
            }
            text.push_str(row.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Headers and rows in one go.
pub fn columns(headers: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut lines = vec![headers.iter().map(|header| (*header).to_string()).collect()];
    lines.extend(rows);
    Columns::default().lay_out(&lines)
}

/// How a table of objects is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// Begin with the namespace.
    pub with_namespace: bool,
    /// Put the kind before the name, as `pod/web`.
    pub with_kind: bool,
    /// Show the columns of lower priority.
    pub wide: bool,
    /// Append the labels.
    pub with_labels: bool,
}

/// The lines of a table: headers, then rows.
pub fn lines(resource: &Resource, table: &Table, shape: Shape) -> Vec<Vec<String>> {
    let shown: Vec<usize> = table
        .columns
        .iter()
        .enumerate()
        .filter(|(_, column)| shape.wide || column.priority == 0)
        .map(|(index, _)| index)
        .collect();
    let mut header: Vec<String> =
        shown.iter().map(|index| table.columns[*index].name.to_uppercase()).collect();
    if shape.with_namespace {
        header.insert(0, "NAMESPACE".to_string());
    }
    if shape.with_labels {
        header.push("LABELS".to_string());
    }
    let rows = table.rows.iter().map(|row| {
        let mut cells: Vec<String> = shown
            .iter()
            .map(|index| {
                let text = row.cells.get(*index).map(cell).unwrap_or_default();
                match table.columns[*index].format {
                    "name" if shape.with_kind => manifest::title(resource, &text),
                    _ => text,
                }
            })
            .collect();
        if shape.with_namespace {
            cells.insert(0, row.object.namespace().to_string());
        }
        if shape.with_labels {
            let labels = row.object.labels().iter().map(|(key, value)| format!("{key}={}", cell(value)));
            let labels = labels.collect::<Vec<_>>().join(",");
            cells.push(if labels.is_empty() { "<none>".to_string() } else { labels });
        }
        cells
    });
    std::iter::once(header).chain(rows).collect()
}

/// A cell's text, harmless to a terminal: what objects say is not ours.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".to_string(),
        other => other.to_string(),
    };
    printable(&text)
}

/// A text in one line without control characters.
pub fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::table::{Column, Row};

    #[test]
    fn columns_are_kubectls() {
        let text = columns(
            &["NAME", "AGE"],
            vec![vec!["web-0".into(), "5s".into()], vec!["x".into(), "10m".into()]],
        );
        assert_eq!(text, "NAME    AGE\nweb-0   5s\nx       10m\n");
    }

    #[test]
    fn widths_only_grow() {
        let mut columns = Columns::default();
        columns.lay_out(&[vec!["long-name".into(), "b".into()]]);
        assert_eq!(columns.lay_out(&[vec!["a".into(), "b".into()]]), "a           b\n");
    }

    #[test]
    fn shapes() {
        let pods = api::resource_by_any_name("pods").unwrap();
        let object = Object(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "n", "labels": {"x": "y"}}}),
        );
        let column = |name, format, priority| Column { name, kind: "string", format, priority };
        let table = Table {
            columns: vec![column("Name", "name", 0), column("IP", "", 1)],
            rows: vec![Row { cells: vec!["a".into(), Value::Null], object }],
        };
        let show = |shape| Columns::default().lay_out(&lines(pods, &table, shape));
        assert_eq!(show(Shape::default()), "NAME\na\n");
        let all = Shape { with_namespace: true, with_kind: true, wide: true, with_labels: true };
        assert_eq!(show(all), "NAMESPACE   NAME    IP       LABELS\nn           pod/a   <none>   x=y\n");
    }

    #[test]
    fn cells_cannot_drive_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nc"), "a [2Jb c");
    }

    #[test]
    fn one_object_is_no_list() {
        let object = Object(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "managedFields": []}}),
        );
        let text = whole(&Format::Yaml, std::slice::from_ref(&object), true).unwrap().unwrap();
        assert_eq!(text, "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n");
        assert!(
            whole(&Format::Json, std::slice::from_ref(&object), false).unwrap().unwrap().contains("\"List\"")
        );
        assert_eq!(whole(&Format::Name, &[object], true).unwrap().unwrap(), "pod/a\n");
    }
}
