//! Naming objects on a command line: `TYPE NAME…`, `TYPE/NAME…`, `TYPE,TYPE`, `all`.

use api::{Key, RESOURCES, Resource};

use super::error::Error;

/// What the words on a command line name.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// All objects of a kind.
    Kind(&'static Resource),
    /// One object.
    Object(&'static Resource, String),
}

/// The kind a word names.
///
/// # Errors
/// `Usage` in kubectl's words.
pub fn kind(word: &str) -> Result<&'static Resource, Error> {
    api::resource_by_any_name(word)
        .ok_or_else(|| Error::Usage(format!("the server doesn't have a resource type {word:?}")))
}

/// Reads the words after a verb.
///
/// # Errors
/// `Usage` if they name nothing, or mix the forms.
pub fn parse(words: &[String]) -> Result<Vec<Target>, Error> {
    let Some(first) = words.first() else {
        return Err(Error::Usage(
            "you must specify the type of resource, as in `pods` or `pod/web`".to_string(),
        ));
    };
    if words.iter().any(|word| word.contains('/')) {
        return words.iter().map(|word| one(word)).collect();
    }
    let kinds = kinds(first)?;
    let names = &words[1..];
    if names.is_empty() {
        return Ok(kinds.into_iter().map(Target::Kind).collect());
    }
    let objects =
        kinds.iter().flat_map(|resource| names.iter().map(|name| Target::Object(resource, name.clone())));
    Ok(objects.collect())
}

fn one(word: &str) -> Result<Target, Error> {
    match word.split_once('/') {
        Some((of, name)) if !of.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(Target::Object(kind(of)?, name.to_string()))
        }
        Some(_) => Err(Error::Usage(format!(
            "arguments in resource/name form must have a single resource and name: {word}"
        ))),
        None => Err(Error::Usage(format!(
            "there is no need to specify a resource type as a separate argument when passing arguments in \
             resource/name form (e.g. 'podyard get resource/<resource_name>' instead of \
             'podyard get resource resource/<resource_name>'): {word}"
        ))),
    }
}

fn kinds(word: &str) -> Result<Vec<&'static Resource>, Error> {
    let mut kinds: Vec<&'static Resource> = Vec::new();
    for name in word.split(',').filter(|name| !name.is_empty()) {
        let category: Vec<_> = RESOURCES.iter().filter(|row| row.categories.contains(&name)).collect();
        if category.is_empty() {
            kinds.push(kind(name)?);
        } else {
            kinds.extend(category);
        }
    }
    Ok(kinds)
}

/// A pod named as `web`, `pod/web` or `pods/web`.
///
/// # Errors
/// `Usage` if another kind is named.
pub fn pod(word: &str, namespace: &str) -> Result<Key, Error> {
    let name = match word.split_once('/') {
        Some((of, name)) if kind(of)?.kind == "Pod" => name,
        Some((of, _)) => return Err(Error::Usage(format!("{of:?} is not a pod"))),
        None => word,
    };
    Ok(Key::core("pods", namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(line: &str) -> String {
        let words: Vec<String> =
            line.split(' ').filter(|word| !word.is_empty()).map(str::to_string).collect();
        match parse(&words) {
            Err(error) => format!("! {error}"),
            Ok(targets) => {
                let texts = targets.iter().map(|target| match target {
                    Target::Kind(resource) => resource.kind.to_string(),
                    Target::Object(resource, name) => format!("{} {name}", resource.kind),
                });
                texts.collect::<Vec<_>>().join(", ")
            }
        }
    }

    #[test]
    fn forms() {
        let check = |line: &str, expect: &str| assert_eq!(show(line), expect, "{line}");
        check("po", "Pod");
        check("pods,svc", "Pod, Service");
        check("pod a b", "Pod a, Pod b");
        check("pod/a svc/b", "Pod a, Service b");
        check("petset web", "PetSet web");
        assert!(show("all").contains("Pod, Service") && show("all").contains("StatefulSet"));
    }

    #[test]
    fn refusals() {
        let check = |line: &str, expect: &str| assert!(show(line).contains(expect), "{line}: {}", show(line));
        check("", "you must specify the type of resource");
        check("cars", "the server doesn't have a resource type \"cars\"");
        check("pod pod/a", "there is no need");
        check("pod/a/b", "single resource and name");
    }

    #[test]
    fn pods() {
        assert_eq!(pod("a", "x").unwrap(), Key::core("pods", "x", "a"));
        assert_eq!(pod("po/a", "x").unwrap(), Key::core("pods", "x", "a"));
        assert!(pod("svc/a", "x").is_err());
    }
}
