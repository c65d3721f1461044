//! Translated code against the interpreter.
