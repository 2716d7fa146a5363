//! Identity of an object: kind, namespace, name.

use std::fmt;

use crate::resource::{Resource, resource_by_plural};

/// Identity of an object. Ordered by group, plural, namespace, name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The stored kind, never an alias.
    pub resource: &'static Resource,
    /// Empty for kinds outside namespaces.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key of `resource`, or of the kind it is stored as. The namespace is dropped for cluster kinds.
    pub fn new(resource: &'static Resource, namespace: impl Into<String>, name: impl Into<String>) -> Key {
        let resource = resource.stored();
        let namespace = if resource.namespaced { namespace.into() } else { String::new() };
        Key { resource, namespace, name: name.into() }
    }

    /// A key in the core group, by plural; for code and tests that name kinds literally.
    ///
    /// # Panics
    /// If no such kind is served.
    pub fn core(plural: &str, namespace: impl Into<String>, name: impl Into<String>) -> Key {
        let Some(resource) = resource_by_plural("", plural) else { panic!("no kind {plural}") };
        Key::new(resource, namespace, name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.resource.group_resource())?;
        if self.resource.namespaced {
            write!(f, "/{}", self.namespace)?;
        }
        write!(f, "/{}", self.name)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display() {
        let check = |key: Key, expect: &str| assert_eq!(key.to_string(), expect);
        check(Key::core("pods", "default", "web-0"), "pods/default/web-0");
        check(Key::core("nodes", "default", "node-0"), "nodes/node-0");
        let pets = resource_by_plural("apps", "petsets").unwrap();
        check(Key::new(pets, "a", "web"), "statefulsets.apps/a/web");
    }
}
