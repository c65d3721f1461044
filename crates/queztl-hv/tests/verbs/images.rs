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

#[test]
fn images_are_copied_between_files_and_the_store() {
    // Arrange: a disk whose first block is not like the others.
    let home = Home::new();
    let (file, copy) = (home.path().join("base.img"), home.path().join("copy.qcow2"));
    let mut disk = vec![0; 1 << 20];
    disk[..512].fill(7);
    fs::write(&file, &disk).unwrap();
    let [file, copy] = [&file, &copy].map(|path| path.to_str().unwrap());

    // Into the store, within it out of it again, each time in another format.
    assert_eq!(home.says(&["image", "convert", file, "store:base"]), "base\n");
    assert_eq!(home.json(&["image", "info", "store:base"])["format"], "qcow2");
    home.says(&["image", "create", "store:child", "--backing", "store:base"]);
    home.says(&["image", "convert", "store:child", copy]);
    fs::remove_file(file).unwrap();
    home.says(&["image", "convert", copy, file]);

    assert_eq!(fs::read(file).unwrap(), disk);
    let left = fs::read_dir(home.path().join("tmp")).unwrap().count();
    assert_eq!(left, 0, "nothing half done stays");
    let taken = home.refuses(&["image", "convert", file, "store:base"]);
    assert!(taken.contains("already"), "{taken}");
    let missing = home.refuses(&["image", "convert", "store:none", "/nowhere"]);
    assert!(missing.contains("there is no image"), "{missing}");
}
