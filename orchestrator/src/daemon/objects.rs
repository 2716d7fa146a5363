//! The registry, as the agent of this process reaches it.

use api::{Error, Key, Object, Part};
use futures::future::{BoxFuture, FutureExt};
use registry::{DeleteOptions, Registry, WriteOptions};
use store::Store;

use crate::node_parts::upstream::{FIELD_MANAGER, Objects};

fn write() -> WriteOptions {
    WriteOptions { field_manager: FIELD_MANAGER.into(), ..WriteOptions::default() }
}

impl<S: Store> Objects for Registry<S> {
    fn get<'a>(&'a self, key: &'a Key) -> BoxFuture<'a, Result<Object, Error>> {
        async move { self.get(key) }.boxed()
    }

    fn create(&self, object: Object) -> BoxFuture<'_, Result<Object, Error>> {
        async move {
            let key = object.key();
            self.create(key.resource, &key.namespace, object.0, &write()).await.map(|written| written.object)
        }
        .boxed()
    }

    fn update(&self, object: Object, part: Part) -> BoxFuture<'_, Result<Object, Error>> {
        async move {
            let key = object.key();
            self.update(&key, object.0, part, &write()).await.map(|written| written.object)
        }
        .boxed()
    }

    fn finish<'a>(&'a self, key: &'a Key, uid: String) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let options =
                DeleteOptions { grace_period_secs: Some(0), uid: Some(uid), ..DeleteOptions::default() };
            self.delete(key, &options).await.map(drop)
        }
        .boxed()
    }
}
