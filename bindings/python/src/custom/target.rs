//! The tables of a sink in Python.

use std::sync::Arc;

use anabranch::mapping::{Contract, Fidelity, TargetSchema, TargetTable};
use anabranch::{Column, Error, Result, TableName, TableSchema};
use async_trait::async_trait;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use super::Object;
use super::checkpointer::tuple;
use super::host::here;
use crate::border::attached;
use crate::model::{PyColumn, PyTable};

/// See `anabranch.Sink`: `describe` and what belongs to it.
#[derive(Debug)]
pub(crate) struct PyTarget {
    object: Object,
}

impl PyTarget {
    pub(crate) fn new(object: Object) -> Self {
        Self { object }
    }

    async fn of_table<T: Send + 'static>(
        &self,
        method: &'static str,
        name: &TableName,
        read: impl FnOnce(&Bound<'_, PyAny>) -> PyResult<T> + Send + 'static,
    ) -> Result<T> {
        let (schema, name) = (name.schema.clone(), name.name.clone());
        self.object.call(method, move |py| tuple(py, (schema, name)), read).await
    }
}

fn given_table(table: &TableSchema) -> PyTable {
    PyTable { schema: Arc::new(table.clone()) }
}

#[async_trait]
impl TargetSchema for PyTarget {
    async fn describe(&self, name: &TableName) -> Result<Option<TargetTable>> {
        let read = |given: &Bound<'_, PyAny>| {
            if given.is_none() {
                return Ok(None);
            }
            let table = given.cast::<PyTable>().map_err(|_| PyTypeError::new_err("describe gives a Table or None"))?;
            Ok(Some(TargetTable {
                schema: TableSchema::clone(&table.get().schema),
                unique: Vec::new(),
                references: Vec::new(),
                required: Vec::new(),
                warnings: Vec::new(),
            }))
        };
        self.of_table("describe", name, read).await
    }

    /// Exact in a column of the same type, unless `contract` says otherwise.
    fn contract(&self, column: &Column, existing: Option<&Column>) -> Contract {
        let asked = here("contract", |py| {
            if !self.object.can(py, "contract") {
                return Ok(None);
            }
            let column_of = |column: &Column| PyColumn { column: column.clone() };
            let given = self.object.bind(py).call_method1("contract", (column_of(column), existing.map(column_of)))?;
            let (native, fidelity, note): (String, String, String) = given.extract()?;
            Ok(Some((native, fidelity, note)))
        });
        match asked {
            Ok(None) => Contract::new(existing.unwrap_or(column).native.clone(), Fidelity::Exact),
            Ok(Some((native, fidelity, note))) => {
                let fidelity = match fidelity.as_str() {
                    "exact" => Fidelity::Exact,
                    "widening" => Fidelity::Widening,
                    "lossy" => Fidelity::Lossy,
                    _ => Fidelity::Unsupported,
                };
                Contract::new(native, fidelity).note(note)
            }
            // What cannot be judged is not written.
            Err(error) => Contract::new("", Fidelity::Unsupported).note(error.report()),
        }
    }

    fn create_statement(&self, table: &TableSchema) -> Result<String> {
        Ok(format!("{}.create({})", self.object.class, table.name))
    }

    async fn create(&self, table: &TableSchema) -> Result<()> {
        let table = given_table(table);
        if !attached(|py| self.object.can(py, "create")).unwrap_or(false) {
            let name = table.schema.name.clone();
            return Err(Error::config(name, format!("does not exist, and {} cannot create it", self.object.class)));
        }
        self.object.call("create", move |py| tuple(py, (table,)), |_| Ok(())).await
    }

    async fn clear(&self, name: &TableName) -> Result<()> {
        self.of_table("clear", name, |_| Ok(())).await
    }

    async fn is_empty(&self, name: &TableName) -> Result<bool> {
        self.of_table("is_empty", name, |given| given.is_truthy()).await
    }
}
