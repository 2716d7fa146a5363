//! The part of kubectl's JSONPath that scripts use: `{.a.b}`, `{.a[0]}`, `{.a[*].b}`, `{.a['b.c']}`, `{"\n"}`,
//! and text between. Source: Kubernetes documentation, "JSONPath Support".

use serde_json::Value;

/// Text and paths, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Path(Path),
}

/// A way into a tree.
#[derive(Clone, Debug, PartialEq)]
pub struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Every,
}

impl Template {
    /// Reads a template; braces hold paths or quoted text.
    ///
    /// # Errors
    /// What was not understood.
    pub fn parse(text: &str) -> Result<Template, String> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_string()));
            }
            let (inside, after) =
                after.split_once('}').ok_or_else(|| format!("jsonpath: {text:?}: unclosed brace"))?;
            pieces.push(match inside.trim() {
                quoted if quoted.starts_with('"') => Piece::Text(
                    serde_json::from_str(quoted)
                        .map_err(|_| format!("jsonpath: {quoted}: not a quoted text"))?,
                ),
                path => Piece::Path(Path::parse(path)?),
            });
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_string()));
        }
        if pieces.is_empty() {
            return Err("jsonpath: the template is empty".to_string());
        }
        Ok(Template(pieces))
    }

    /// Fills the template from a tree; what is not there is empty.
    ///
    /// # Errors
    /// None at present; templates may come to need more than a lookup.
    pub fn render(&self, tree: &Value) -> Result<String, String> {
        let pieces = self.0.iter().map(|piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Path(path) => path.find(tree).into_iter().map(show).collect::<Vec<_>>().join(" "),
        });
        Ok(pieces.collect())
    }
}

impl Path {
    /// Reads `.a.b[0]['c']`, with or without `$`, braces removed.
    ///
    /// # Errors
    /// What was not understood.
    pub fn parse(text: &str) -> Result<Path, String> {
        let wrong = || format!("jsonpath: {text:?}: only .field, [index], [*] and ['field'] are known");
        let mut rest = text.strip_prefix('$').or(text.strip_prefix('@')).unwrap_or(text);
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(inside) = rest.strip_prefix('[') {
                let (inside, after) = inside.split_once(']').ok_or_else(wrong)?;
                let quoted = inside.strip_prefix('\'').and_then(|inside| inside.strip_suffix('\''));
                steps.push(match (quoted, inside) {
                    (Some(field), _) => Step::Field(field.to_string()),
                    (None, "*") => Step::Every,
                    (None, index) => Step::Index(index.parse().map_err(|_| wrong())?),
                });
                rest = after;
                continue;
            }
            let name = rest.strip_prefix('.').or((steps.is_empty()).then_some(rest)).ok_or_else(wrong)?;
            // kubectl writes dots inside a name as `\.`.
            let mut field = String::new();
            let mut letters = name.char_indices();
            let mut end = name.len();
            while let Some((at, letter)) = letters.next() {
                match letter {
                    '\\' => field.extend(letters.next().map(|(_, next)| next)),
                    '.' | '[' => {
                        end = at;
                        break;
                    }
                    other => field.push(other),
                }
            }
            if field.is_empty() && end < name.len() {
                return Err(wrong());
            }
            if !field.is_empty() {
                steps.push(if field == "*" { Step::Every } else { Step::Field(field) });
            }
            rest = &name[end..];
        }
        Ok(Path(steps))
    }

    /// Everything the path leads to.
    pub fn find<'a>(&self, tree: &'a Value) -> Vec<&'a Value> {
        self.0.iter().fold(vec![tree], |found, step| {
            found
                .into_iter()
                .flat_map(|value| -> Vec<&Value> {
                    match (step, value) {
                        (Step::Field(field), value) => value.get(field).into_iter().collect(),
                        (Step::Every, Value::Array(items)) => items.iter().collect(),
                        (Step::Every, Value::Object(map)) => map.values().collect(),
                        (Step::Index(index), Value::Array(items)) => {
                            let from_end =
                                usize::try_from(-index).ok().and_then(|back| items.len().checked_sub(back));
                            let at = usize::try_from(*index).ok().or(from_end);
                            at.and_then(|at| items.get(at)).into_iter().collect()
                        }
                        _ => Vec::new(),
                    }
                })
                .collect()
        })
    }
}

/// A value as JSONPath shows it: strings bare, the rest as JSON.
pub fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates() {
        let tree = json!({"status": {"phase": "Running", "ips": [{"ip": "1"}, {"ip": "2"}]}, "n": 3, "labels": {"a.b/c": "x"}});
        let check = |template: &str, expect: &str| {
            assert_eq!(Template::parse(template).unwrap().render(&tree).unwrap(), expect, "{template}");
        };
        check("{.status.phase}", "Running");
        check("{.status.phase}{\"\\n\"}", "Running\n");
        check("{.status.ips[*].ip}", "1 2");
        check("{.status.ips[-1].ip}", "2");
        check("{$.n}/{.missing.x}", "3/");
        check("{.labels.a\\.b/c} {.labels['a.b/c']}", "x x");
        check("{.status.ips[0]}", "{\"ip\":\"1\"}");
        for wrong in ["", "{.a", "{.a[x]}", "{\"a}"] {
            assert!(Template::parse(wrong).is_err(), "{wrong}");
        }
    }
}
