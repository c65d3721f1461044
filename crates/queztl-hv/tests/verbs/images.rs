//! Images of the store and machines on them.

use std::fs;

use crate::home::Home;

#[test]
fn machines_build_on_images_of_the_store() {
    // Arrange: an image with something on it.
    let home = Home::new();
    let file = home.path().join("base.img");
    fs::write(&file, vec![7; 1 << 20]).unwrap();
    assert_eq!(home.says(&["image", "import", "base", file.to_str().unwrap()]), "base\n");
    fs::remove_file(&file).unwrap();
    let kernel = home.idle_kernel();
    let kernel = kernel.to_str().unwrap();

    // A machine on it.
    home.says(&["spawn", "one", "--image", "base", "--ram", "16M", "--kernel", kernel]);
    assert!(home.says(&["image", "list", "-o", "wide"]).contains("one"));
    assert!(home.says(&["image", "info", "store:base"]).contains("1 MiB"));
    for words in [&["image", "delete", "base"][..], &["image", "resize", "store:base", "8M"]] {
        let refused = home.refuses(words);
        assert!(refused.contains("\"one\" builds on it"), "{refused}");
    }

    // Nobody on it.
    home.says(&["delete", "--force", "one"]);
    home.says(&["image", "convert", "store:base", "store:copy", "-O", "qcow2"]);
    assert!(home.says(&["image", "check", "store:copy"]).contains("sound"));
    home.says(&["image", "resize", "store:copy", "8M"]);
    assert_eq!(home.json(&["image", "info", "store:copy"])["size_bytes"], 8 << 20);
    home.says(&["image", "delete", "base", "copy"]);
    assert_eq!(home.says(&["image", "list", "-o", "name"]), "");
}
