//! The sink and the stores on DynamoDB Local.

mod conformance;
mod guard;
mod limits;
mod support;
mod throttle;
