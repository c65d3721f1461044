//! Test guests and how they are built.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A test guest: the topic `guest/tests/TOPIC.c`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guest {
    /// Name of the source file, without its suffix.
    pub topic: &'static str,
    /// How many vCPUs it needs.
    pub vcpus: u32,
}

/// A guest could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The tools are not there; tests skip then.
    #[error("{0} is missing: install gcc and binutils to build the test guests")]
    MissingTool(&'static str),
    /// The compiler refused the source.
    #[error("building the guest {topic} failed:\n{output}")]
    Refused {
        /// The guest's topic.
        topic: &'static str,
        /// What the tools printed.
        output: String,
    },
    /// The build could not be started.
    #[error("building the guest {topic} could not be started: {source}")]
    Start {
        /// The guest's topic.
        topic: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Guest {
    /// Compiles and links the guest into `directory`; returns the image, a 32-bit Multiboot 1 ELF file.
    pub fn build(&self, directory: &Path) -> Result<PathBuf, BuildError> {
        for tool in ["gcc", "objcopy"] {
            if Command::new(tool).arg("--version").output().is_err() {
                return Err(BuildError::MissingTool(tool));
            }
        }
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../guest/tests");
        let image = directory.join(self.topic);
        let output = Command::new("sh")
            .arg(sources.join("build.sh"))
            .arg(sources.join(self.topic).with_extension("c"))
            .arg(&image)
            .output()
            .map_err(|source| BuildError::Start { topic: self.topic, source })?;
        if output.status.success() {
            return Ok(image);
        }
        Err(BuildError::Refused { topic: self.topic, output: String::from_utf8_lossy(&output.stderr).into_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_without_a_source_is_refused_with_what_the_compiler_said() {
        let directory = tempfile::tempdir().unwrap();
        let built = Guest { topic: "no-such-topic", vcpus: 1 }.build(directory.path());
        match built {
            Err(BuildError::Refused { output, .. }) => assert!(output.contains("no-such-topic.c"), "{output}"),
            Err(BuildError::MissingTool(tool)) => eprintln!("skipped: {tool} is missing"),
            other => panic!("{other:?}"),
        }
    }
}
