import json

from conversion.default_model.ship import ship


def test_weights_and_configs_go_and_code_stays(tmp_path):
    trained, package = tmp_path / "trained", tmp_path / "package"
    (trained / "training").mkdir(parents=True)
    package.mkdir()
    (package / "left_over.bin").touch()
    (trained / "model.safetensors").write_bytes(b"weights")
    (trained / "modeling.py").touch()
    config = {"auto_map": {"AutoModel": "modeling.Model"}, "parts": [{"auto_map": {}, "size": 96}], "name": "ü"}
    (trained / "config.json").write_text(json.dumps(config))

    ship(trained, package)

    assert sorted(path.name for path in package.iterdir()) == ["config.json", "model.safetensors"]
    assert (package / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((package / "config.json").read_text()) == {"parts": [{"size": 96}], "name": "ü"}
