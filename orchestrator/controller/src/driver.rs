//! Calls made: what a driver does with an effect.
//!
//! ```text
//!  loop { input = watch, answer or timer; for effect in controllers.step(input, now, rng) {
//!      Call { id, call } => spawn { answer = perform(&registry, call).await; send Input::Done { id, answer } }
//!      WakeAt(time)      => set the timer
//!  } }
//! ```

use api::{Error, Kind, Object};
use registry::{DeleteOptions, Registry, WriteOptions};
use store::Store;

use crate::effect::{Call, Propagation};

/// Makes one call. Its answer goes into [`crate::Input::Done`].
///
/// # Errors
/// The registry's refusal.
///
/// # Cancellation
/// Dropping it may or may not make the call; start the controllers afresh then.
pub async fn perform<S: Store>(registry: &Registry<S>, call: Call) -> Result<Option<Object>, Error> {
    let options = WriteOptions { field_manager: "podyard-controllers".into(), ..WriteOptions::default() };
    match call {
        Call::Create { object } => {
            let key = object.key();
            let written = registry.create(key.resource, &key.namespace, object.0, &options).await?;
            Ok(Some(written.object))
        }
        Call::Update { object, part } => {
            let written = registry.update(&object.key(), object.0, part, &options).await?;
            // Taking the last finalizer away ends an object in deletion.
            let is_over =
                written.object.is_deleting() && registry.store().get(&written.object.key()).is_none();
            Ok(if is_over { None } else { Some(written.object) })
        }
        Call::Delete { key, uid, propagation } => {
            let options = DeleteOptions {
                uid: Some(uid),
                propagation: Some(match propagation {
                    Propagation::Background => registry::Propagation::Background,
                    Propagation::Foreground => registry::Propagation::Foreground,
                    Propagation::Orphan => registry::Propagation::Orphan,
                }),
                ..DeleteOptions::default()
            };
            let deleted = registry.delete(&key, &options).await?;
            Ok(if deleted.is_gone { None } else { Some(deleted.object) })
        }
        Call::Bind { pod, uid, node, pod_ip } => {
            let written = registry.bind(&pod, Some(&uid), &node, pod_ip).await?;
            Ok(Some(written.object))
        }
        Call::Read { key, .. } => registry.get(&key).map(Some),
        Call::Fence { node, .. } => {
            let why = format!("fence node {node}: only the host's daemon reaches its processes");
            Err(Error::new(Kind::Unsupported, why))
        }
    }
}
