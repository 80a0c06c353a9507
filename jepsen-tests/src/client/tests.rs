//! Tests below.
