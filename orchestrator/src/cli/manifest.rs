//! Manifests: YAML or JSON, one document or many, from a file, a directory, or standard input.
//!
//! Untrusted input: documents, nesting, aliases and bytes are bounded, and a key given twice is refused.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use api::Resource;
use serde_json::Value;
use serde_saphyr::Options;

use super::error::Error;

/// Largest file, bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// One object from a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Where it stood, for messages.
    pub place: String,
    /// Its kind, perhaps an alias.
    pub resource: &'static Resource,
    /// As written.
    pub object: Value,
}

impl Manifest {
    /// `metadata.name`; empty if missing.
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or("")
    }

    /// `pod/web`, or `statefulset.apps/web` outside the core group.
    pub fn title(&self) -> String {
        title(self.resource, self.name())
    }

    /// The namespace to use, given the one on the command line.
    ///
    /// # Errors
    /// `Usage` if file and command line disagree, in kubectl's words.
    pub fn namespace(&self, chosen: Option<&str>, default: &str) -> Result<String, Error> {
        let own = self.object["metadata"]["namespace"].as_str().filter(|own| !own.is_empty());
        match (own, chosen) {
            (Some(own), Some(chosen)) if own != chosen && self.resource.namespaced => {
                Err(Error::Usage(format!(
                    "the namespace from the provided object {own:?} does not match the namespace {chosen:?}. \
                 You must pass '--namespace={own}' to perform this operation."
                )))
            }
            (Some(own), _) => Ok(own.to_string()),
            (None, chosen) => Ok(chosen.unwrap_or(default).to_string()),
        }
    }
}

/// `pod/web`, or `statefulset.apps/web` outside the core group.
pub fn title(resource: &Resource, name: &str) -> String {
    match resource.group {
        "" => format!("{}/{name}", resource.singular),
        group => format!("{}.{group}/{name}", resource.singular),
    }
}

/// Reads every manifest that `-f` names: files, directories (not into those inside), `-` for standard input.
///
/// # Errors
/// `Io` or `Manifest`, with the file's name.
pub fn read_all(sources: &[String]) -> Result<Vec<Manifest>, Error> {
    let mut manifests = Vec::new();
    for source in sources {
        if source == "-" {
            let mut text = Vec::new();
            read_bounded(std::io::stdin(), &mut text)
                .map_err(|error| Error::io("read standard input", error))?;
            manifests.extend(parse("standard input", &text)?);
            continue;
        }
        for path in files(Path::new(source))? {
            let place = path.display().to_string();
            let mut text = Vec::new();
            std::fs::File::open(&path)
                .and_then(|file| read_bounded(file, &mut text))
                .map_err(|error| Error::io(format!("read {place}"), error))?;
            manifests.extend(parse(&place, &text)?);
        }
    }
    if manifests.is_empty() {
        return Err(Error::Usage("no objects passed".to_string()));
    }
    Ok(manifests)
}

fn read_bounded(reader: impl std::io::Read, text: &mut Vec<u8>) -> std::io::Result<()> {
    reader.take(FILE_BYTES_MAX + 1).read_to_end(text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// The file itself, or the manifests in a directory, sorted by name.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let told = |error| Error::io(format!("read {}", path.display()), error);
    if !std::fs::metadata(path).map_err(told)?.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries: Result<Vec<_>, _> = std::fs::read_dir(path).map_err(told)?.collect();
    let mut files: Vec<PathBuf> = entries.map_err(told)?.into_iter().map(|entry| entry.path()).collect();
    files.retain(|file| {
        let known = file.extension().is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
        known && file.is_file()
    });
    files.sort();
    Ok(files)
}

/// The objects in a text; a `List` is taken apart.
///
/// # Errors
/// `Manifest` naming the document and what is wrong.
pub fn parse(place: &str, text: &[u8]) -> Result<Vec<Manifest>, Error> {
    let mut manifests = Vec::new();
    for (index, document) in documents(text).map_err(|problem| wrong(place, problem))?.into_iter().enumerate()
    {
        let place = if index == 0 { place.to_string() } else { format!("{place}, document {}", index + 1) };
        let items = match document {
            Value::Null => Vec::new(),
            Value::Object(mut list) if list.get("kind").is_some_and(|kind| kind == "List") => {
                match list.remove("items") {
                    Some(Value::Array(items)) => items,
                    _ => return Err(wrong(&place, "a List has no items")),
                }
            }
            one => vec![one],
        };
        for object in items {
            manifests.push(known(&place, object)?);
        }
    }
    Ok(manifests)
}

fn wrong(place: &str, problem: impl Into<String>) -> Error {
    Error::Manifest { place: place.to_string(), problem: problem.into() }
}

fn known(place: &str, object: Value) -> Result<Manifest, Error> {
    let text = |name: &str| object[name].as_str().unwrap_or("").to_string();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if !object.is_object() {
        return Err(wrong(place, "not an object"));
    }
    for (field, value) in [("apiVersion", &version), ("kind", &kind)] {
        if value.is_empty() {
            return Err(wrong(place, format!("{field} not set")));
        }
    }
    let Some(resource) = api::resource_for_kind(&version, &kind) else {
        return Err(wrong(place, format!("no matches for kind {kind:?} in version {version:?}")));
    };
    Ok(Manifest { place: place.to_string(), resource, object })
}

/// The documents in a text, as plain trees.
fn documents(text: &[u8]) -> Result<Vec<Value>, String> {
    let text = std::str::from_utf8(text).map_err(|error| format!("not UTF-8: {error}"))?;
    // JSON is nearly YAML; read as JSON it is faster and its mistakes are told better.
    if text.trim_start().starts_with('{') {
        let stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        if let Ok(documents) = stream.collect() {
            return Ok(documents);
        }
    }
    serde_saphyr::from_multiple_with_options(text, options()).map_err(|error| error.to_string())
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            max_documents: 10_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_nodes: 1_000_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
            max_replay_stack_depth: 32,
            max_alias_expansions_per_anchor: 1_000,
        },
        // As kubectl reads it: `defaultMode: 0644` is octal, `yes` is true.
        legacy_octal_numbers: true,
        with_snippet: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(text: &str) -> Result<Vec<Manifest>, String> {
        parse("f.yaml", text.as_bytes()).map_err(|error| error.to_string())
    }

    #[test]
    fn documents_and_lists_are_taken_apart() {
        let text = "# nothing\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: apps/v1alpha1\n  kind: PetSet\n  metadata: {name: b}\n";
        let titles: Vec<String> = read(text).unwrap().iter().map(Manifest::title).collect();
        assert_eq!(titles, ["pod/a", "petset.apps/b"]);
        let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"}}
                      {"apiVersion":"v1","kind":"Pod","metadata":{"name":"b"}}"#;
        assert_eq!(read(json).unwrap().len(), 2);
    }

    #[test]
    fn scalars_are_what_kubectl_takes_them_for() {
        let text = "apiVersion: v1\nkind: Pod\nx: {mode: 0644, yes: yes, port: 80, text: \"80\", cpu: 0.5, nothing: ~, version: 1.2.3}\nblock: |\n  a\n  b\n";
        let object = read(text).unwrap().remove(0).object;
        let expect = json!({"mode": 420, "yes": true, "port": 80, "text": "80", "cpu": 0.5, "nothing": null, "version": "1.2.3"});
        assert_eq!(object["x"], expect);
        assert_eq!(object["block"], "a\nb\n");
    }

    #[test]
    fn anchors_work_and_bombs_do_not() {
        let text = "apiVersion: v1\nkind: Pod\na: &a {b: c}\nd: *a\n";
        assert_eq!(read(text).unwrap()[0].object["d"], json!({"b": "c"}));
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(",");
            bomb += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        assert!(read(&bomb).is_err());
        let deep = "[".repeat(5_000) + &"]".repeat(5_000);
        assert!(read(&format!("a: {deep}")).is_err());
    }

    #[test]
    fn mistakes_are_named() {
        let check = |text: &str, expect: &str| {
            let error = read(text).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check("kind: Pod\n", "f.yaml: apiVersion not set");
        check("apiVersion: v1\nkind: Nope\n", "no matches for kind \"Nope\" in version \"v1\"");
        check("apiVersion: v1\nkind: Pod\nkind: Pod\n", "uplicate");
        check("- a\n", "not an object");
        check("apiVersion: v1\nkind: Pod\nmetadata: {name: a\n", "f.yaml: ");
    }
}
