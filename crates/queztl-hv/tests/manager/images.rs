//! Images of the store, and who uses them.

use queztl_api::{
    CheckReport, Code, ConvertImage, CreateImage, Disk, Image, ImageFormat, ImportImage, Name, ResizeImage, VmSpec,
};
use queztl_control::{Manager, Service};

use crate::common::*;

const MIB: u64 = 1 << 20;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A sparse file of 8 MiB with something in its middle.
fn raw(home: &Home) -> std::path::PathBuf {
    use std::os::unix::fs::FileExt;
    let path = home.folder.path().join("file.raw");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(8 * MIB).unwrap();
    file.write_all_at(b"in the middle", 4 * MIB).unwrap();
    path
}

async fn import(manager: &Manager, as_name: &str, path: &std::path::Path) -> queztl_api::Operation {
    let request = ImportImage { name: name(as_name), path: path.to_path_buf(), format: None };
    end(manager, manager.import_image(request).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_imported_sparse_and_converted_both_ways() {
    let home = Home::new();
    let manager = home.manager().await;
    let file = raw(&home);

    let imported = import(&manager, "disk", &file).await;
    let image: Image = serde_json::from_value(imported.result.unwrap()).unwrap();
    assert_eq!((image.format, image.size_bytes), (ImageFormat::Raw, 8 * MIB));
    assert!(image.allocated_bytes < MIB, "{image:?}");
    for (from, to, format) in [("disk", "cow", ImageFormat::Qcow2), ("cow", "back", ImageFormat::Raw)] {
        let request = ConvertImage { name: name(to), format };
        done(&manager, manager.convert_image(&name(from), request).await).await;
    }

    let images = home.folder.path().join("disk-images");
    assert_eq!(std::fs::read(images.join("back.raw")).unwrap(), std::fs::read(&file).unwrap());
    let report = done(&manager, manager.check_image(&name("cow")).await).await.result.unwrap();
    assert!(serde_json::from_value::<CheckReport>(report).unwrap().sound);
    let names: Vec<String> = manager.images().await.unwrap().iter().map(|image| image.name.to_string()).collect();
    assert_eq!(names, ["back", "cow", "disk"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_in_use_is_neither_deleted_nor_resized_and_the_refusal_names_the_user() {
    let home = Home::new();
    let manager = home.manager().await;
    import(&manager, "base", &raw(&home)).await;
    let child =
        CreateImage { name: name("child"), size_bytes: Some(16 * MIB), format: None, backing: Some(name("base")) };
    done(&manager, manager.create_image(child).await).await;
    let disk = Disk { image: Some(name("child")), ..Disk::default() };
    let vm = spawn(&manager, "user", VmSpec { disks: vec![disk], ..idle(home.folder.path()) }).await;

    let refused = manager.delete_image(&name("base")).await.unwrap_err();
    assert!(refused.code == Code::InUse && refused.detail.contains("image \"child\""), "{refused}");
    let refused = manager.delete_image(&name("child")).await.unwrap_err();
    assert!(refused.code == Code::InUse && refused.detail.contains("virtual machine \"user\""), "{refused}");
    let larger = ResizeImage { size_bytes: 32 * MIB, shrink: false };
    assert_eq!(manager.resize_image(&name("child"), larger).await.unwrap_err().code, Code::InUse);
    assert_eq!(manager.image(&name("child")).await.unwrap().used_by, [vm.id]);
    done(&manager, manager.delete("user", true).await).await;
    done(&manager, manager.resize_image(&name("child"), larger).await).await;
    assert_eq!(manager.image(&name("child")).await.unwrap().size_bytes, 32 * MIB);
    let smaller = ResizeImage { size_bytes: MIB, shrink: false };
    assert_eq!(manager.resize_image(&name("child"), smaller).await.unwrap_err().code, Code::Invalid);
    manager.delete_image(&name("child")).await.unwrap();
    manager.delete_image(&name("base")).await.unwrap();
    assert_eq!(std::fs::read_dir(home.folder.path().join("disk-images")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_image_gets_no_further_than_its_refusal() {
    let home = Home::new();
    let manager = home.manager().await;
    let folder = home.folder.path();
    let broken = folder.join("broken.qcow2");
    std::fs::write(&broken, b"QFI\xfb\0\0\0\x03 and nothing else").unwrap();
    let outside = folder.join("outside.qcow2");
    let parent = queztl_storage::image::Parent { path: "/etc/hostname".into(), format: queztl_storage::Format::Raw };
    std::fs::create_dir(folder.join("in")).unwrap();
    let secret = folder.join("secret");
    std::fs::write(&secret, vec![7; 4096]).unwrap();
    let config = queztl_storage::image::CreateConfig {
        path: folder.join("in/outside.qcow2"),
        format: queztl_storage::Format::Qcow2,
        size_bytes: Some(4096),
        parent: Some(queztl_storage::image::Parent { path: secret, ..parent }),
    };
    queztl_storage::image::create(&config).unwrap();

    assert_eq!(import(&manager, "a", &broken).await.problem.unwrap().code, Code::Invalid);
    assert_eq!(import(&manager, "b", &outside).await.problem.unwrap().code, Code::Invalid);
    let refused = import(&manager, "c", &config.path).await.problem.unwrap();
    assert!(refused.code == Code::Invalid && refused.detail.contains("outside its own folder"), "{refused}");
    let relative = ImportImage { name: name("d"), path: "x.raw".into(), format: None };
    assert_eq!(manager.import_image(relative).await.unwrap_err().code, Code::Invalid);

    assert!(manager.images().await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(folder.join("disk-images")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_of_an_image_is_the_machines_own() {
    let home = Home::new();
    let manager = home.manager().await;
    import(&manager, "base", &raw(&home)).await;
    let too_small = Disk { image: Some(name("base")), size_bytes: Some(MIB), ..Disk::default() };
    let spec = |disk| VmSpec { disks: vec![disk], ..idle(home.folder.path()) };
    let failed = end(&manager, manager.create(request("small", spec(too_small), false)).await).await;
    assert_eq!(failed.problem.unwrap().fields[0].field, "spec.disks[0].size_bytes");
    assert!(manager.vms().await.unwrap().is_empty());
    let missing = Disk { image: Some(name("nowhere")), ..Disk::default() };
    let failed = end(&manager, manager.create(request("missing", spec(missing), false)).await).await;
    assert_eq!(failed.problem.unwrap().code, Code::NotFound);

    let larger = Disk { image: Some(name("base")), size_bytes: Some(64 * MIB), ..Disk::default() };
    let vm = spawn(&manager, "one", spec(larger)).await;

    assert_eq!(std::fs::read_dir(home.vm_folder(&vm.id).join("disks")).unwrap().count(), 1);
    done(&manager, manager.delete("one", true).await).await;
    assert_eq!(std::fs::read_dir(home.folder.path().join("vms")).unwrap().count(), 0);
}
