//! The Python module `anabranch._anabranch`: what `python/anabranch` wraps. It only translates.

#![allow(unreachable_pub, reason = "the crate is a Python module")]

mod arrow;
mod batch;
mod border;
mod convert;
mod custom;
mod error;
mod log;
mod model;
mod pipeline;
mod rewrite;
mod runtime;
#[cfg(feature = "testkit")]
mod testkit;
mod value;

use pyo3::prelude::*;

/// Runs the `anabranch` command with these arguments, and gives its exit code.
#[pyfunction]
fn command(py: Python<'_>, arguments: Vec<String>) -> u8 {
    py.detach(|| anabranch_cli::run(arguments))
}

#[pymodule]
fn _anabranch(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(command, module)?)?;
    module.add_function(wrap_pyfunction!(pipeline::build, module)?)?;
    module.add_function(wrap_pyfunction!(pipeline::parse_toml, module)?)?;
    module.add_function(wrap_pyfunction!(pipeline::stop_all, module)?)?;
    module.add_class::<pipeline::Native>()?;
    module.add_class::<pipeline::Running>()?;
    module.add_class::<runtime::Operation>()?;
    module.add_class::<model::PyColumn>()?;
    module.add_class::<model::PyTable>()?;
    module.add_class::<model::PyPosition>()?;
    module.add_class::<batch::PyBatch>()?;
    module.add_class::<batch::PyChange>()?;
    module.add_class::<batch::PyUnit>()?;
    module.add_class::<rewrite::PyBuilder>()?;
    module.add_class::<arrow::PyTableChanges>()?;
    #[cfg(feature = "testkit")]
    testkit::add(module)?;
    Ok(())
}
