//! What a transform makes of each schema, found once.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::Result;
use crate::model::TableSchema;

/// More schemas than tables have versions in one run; a source that makes a new `Arc` for each
/// batch must not fill the memory.
const LIMIT: usize = 4096;

/// One `T` for each schema. The same `Arc` in gives the same `T`; so does an equal schema in a new `Arc`.
#[derive(Debug)]
pub(super) struct Schemas<T> {
    /// By address; the `Arc` beside it keeps the address from being used again.
    known: HashMap<usize, (Arc<TableSchema>, Arc<T>)>,
}

impl<T> Default for Schemas<T> {
    fn default() -> Self {
        Self { known: HashMap::new() }
    }
}

impl<T> Schemas<T> {
    pub(super) fn get(
        &mut self,
        schema: &Arc<TableSchema>,
        make: impl FnOnce(&Arc<TableSchema>) -> Result<T>,
    ) -> Result<Arc<T>> {
        let address = Arc::as_ptr(schema).addr();
        if let Some((_, made)) = self.known.get(&address) {
            return Ok(Arc::clone(made));
        }
        let equal = self.known.values().find(|(known, _)| known == schema).map(|(_, made)| Arc::clone(made));
        let made = match equal {
            Some(made) => made,
            None => Arc::new(make(schema)?),
        };
        if self.known.len() >= LIMIT {
            self.known.clear();
        }
        self.known.insert(address, (Arc::clone(schema), Arc::clone(&made)));
        Ok(made)
    }
}
