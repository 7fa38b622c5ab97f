"""Writes a folder of Janus in the other layout: weights, configuration, tokenizer and image processor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewards.models.torchvision_mend import mend
from t2i_gcpo.generators.integrity import check_has_tokenizer, load_part, read_object, reading
from t2i_gcpo.generators.janus import layouts, original_config
from t2i_gcpo.generators.janus.random_model import IMAGE

#: Weights of the authors' layout that transformers' has no place for; kept, so that the way back loses nothing.
EXTRA = "original_extra.safetensors"
#: Key in the authors' processor_config.json that holds the chat template of a checkpoint that came from transformers.
FRAME = "transformers_chat_template"
#: Bytes of a weight file at most.
SHARD = "5GB"
#: The frame of a prompt in the authors' processor (its conversation format "deepseek", without a system prompt).
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|User|>: {% else %}<|Assistant|>: {% endif %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image_placeholder>\n{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% if m['role'] == 'user' %}{{ '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
)


def layout(folder: Path) -> str:
    """Return "original" or "transformers". ValueError for a folder of neither."""
    kind = read_object(folder / "config.json").get("model_type") if (folder / "config.json").is_file() else None
    names = {original_config.MODEL_TYPE: "original", "janus": "transformers"}
    if kind not in names:
        raise ValueError(
            f"{folder} is no checkpoint of Janus: model_type in its config.json is {kind!r}; expected "
            f"{' (authors) or '.join(names)} (transformers); of a LoRA adapter, a delta or a run's folder t2i-gcpo "
            "export --merged makes a whole model"
        )
    return names[kind]


def convert(folder: Path, out: Path) -> None:
    """Write the checkpoint in `folder` to `out` in the layout that it has not.

    ValueError: files are missing or damaged, or a weight has no place in the other layout.
    """
    if layout(folder) == "original":
        _to_transformers(folder, out)
    else:
        _to_original(folder, out)


def _to_transformers(folder: Path, out: Path) -> None:
    mend()  # transformers imports torchvision
    from transformers import GenerationConfig

    processor = _processor(folder)
    words = processor.tokenizer
    ids = {"pad": words.pad_token_id, "bos": words.bos_token_id, "eos": words.eos_token_id}
    image = words.convert_tokens_to_ids(words.image_token)
    original = read_object(folder / "config.json")
    with reading(folder, "the configuration"):
        config = original_config.to_transformers(original, {**ids, "image": image})
    weights, unused = layouts.to_transformers(read_weights(folder))
    check_names(config, weights)
    write_weights(weights, out)
    if unused:
        _save(unused, out / EXTRA)
    config.dtype = next(iter(weights.values())).dtype
    config.architectures = ["JanusForConditionalGeneration"]
    config.save_pretrained(out)
    boi = words.convert_tokens_to_ids(words.boi_token)
    special = {f"{name}_token_id": number for name, number in ids.items()}
    GenerationConfig(**special, generation_kwargs={"boi_token_id": boi}).save_pretrained(out)
    processor.save_pretrained(out)


def _to_original(folder: Path, out: Path) -> None:
    mend()
    from transformers import JanusConfig, JanusProcessor

    extra = folder / EXTRA
    with reading(folder):
        config = JanusConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    weights = read_weights(folder, leave=(EXTRA,))
    check_names(config, weights)
    original = layouts.to_original(weights, _load(extra) if extra.is_file() else {})
    write_weights(original, out)
    dtype = str(next(iter(original.values())).dtype).removeprefix("torch.")
    _write(out / "config.json", original_config.to_original(config, dtype))
    processor: Any = load_part(JanusProcessor, folder)
    processor.tokenizer.save_pretrained(out)
    pictures = processor.image_processor
    _write(
        out / "preprocessor_config.json",
        {
            "background_color": [round(255 * mean) for mean in pictures.image_mean],
            "do_normalize": pictures.do_normalize,
            "image_mean": list(pictures.image_mean),
            "image_processor_type": "VLMImageProcessor",
            "image_size": pictures.size["height"],
            "image_std": list(pictures.image_std),
            "min_size": pictures.min_size,
            "processor_class": "VLChatProcessor",
            "rescale_factor": pictures.rescale_factor,
        },
    )
    _write(
        out / "processor_config.json",
        {
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": processor.tokenizer.image_token,
            "mask_prompt": True,
            "num_image_tokens": config.vision_config.num_image_tokens,
            "processor_class": "VLChatProcessor",
            "sft_format": "deepseek",
            FRAME: processor.chat_template,
        },
    )


def check_names(config: Any, weights: Mapping[str, Tensor]) -> None:
    """Compare names and shapes with those of the model that `config` describes. ValueError names what differs."""
    from transformers import JanusForConditionalGeneration

    with torch.device("meta"):
        wanted = {
            name: tuple(value.shape) for name, value in JanusForConditionalGeneration(config).state_dict().items()
        }
    given = {name: tuple(value.shape) for name, value in weights.items()}
    unlike = sorted(name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name))
    if unlike:
        name = unlike[0]
        raise ValueError(
            f"{len(unlike)} weights are not those that the config.json describes, such as {name}: "
            f"{given.get(name, 'missing')} instead of {wanted.get(name, 'none')}"
        )


def read_weights(folder: Path, *, leave: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Read all weights of a folder, from safetensors or else from torch's files, which run no code here."""
    _check_index(folder)
    files = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in leave]
    with reading(folder):
        if files:
            return {name: tensor for path in files for name, tensor in _load(path).items()}
        pickled = sorted(folder.glob("pytorch_model*.bin"))
        weights: dict[str, Tensor] = {}
        for path in pickled:
            weights |= torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not weights:
        raise ValueError(f"{folder} has no weights: neither *.safetensors nor pytorch_model*.bin")
    return weights


def _check_index(folder: Path) -> None:
    """Check that every weight file that an index names is there. ValueError names one that is not."""
    for index in sorted(folder.glob("*.index.json")):
        files = read_object(index).get("weight_map", {})
        if not isinstance(files, dict):
            raise ValueError(f"{index} is damaged: its weight_map is no object of weight -> file")
        missing = sorted(file for file in set(map(str, files.values())) if not (folder / file).is_file())
        if missing:
            raise ValueError(
                f"the checkpoint in {folder} is not whole: {index.name} names {missing[0]}, and there is no such file; "
                "download the folder again"
            )


def write_weights(weights: Mapping[str, Tensor], out: Path) -> None:
    """Write weights as model.safetensors, in several files with an index where they are large."""
    from huggingface_hub import split_torch_state_dict_into_shards

    plan = split_torch_state_dict_into_shards(dict(weights), max_shard_size=SHARD)
    for file, names in plan.filename_to_tensors.items():
        _save({name: weights[name] for name in names}, out / file)
    if plan.is_sharded:
        _write(out / "model.safetensors.index.json", {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename})


def _processor(folder: Path) -> Any:
    """Make transformers' processor of the authors' tokenizer and image processor."""
    from transformers import JanusImageProcessor, JanusProcessor, PreTrainedTokenizerFast

    check_has_tokenizer(folder)
    own = read_object(folder / "tokenizer_config.json")
    extra = {} if "boi_token" in own or own.get("extra_special_tokens") else {"extra_special_tokens": IMAGE}
    with reading(folder, "the tokenizer"):
        words = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, padding_side="left", **extra
        )
    file = folder / "preprocessor_config.json"
    given = read_object(file) if file.is_file() else {}
    keys = ("do_normalize", "image_mean", "image_std", "min_size", "rescale_factor")
    options = {key: given[key] for key in keys if key in given}
    side = given.get("image_size", 384)
    about = read_object(folder / "processor_config.json")
    pictures = JanusImageProcessor(**options, size={"height": side, "width": side})
    frame = about.get(FRAME, TEMPLATE)
    return JanusProcessor(pictures, words, chat_template=frame, num_image_tokens=about.get("num_image_tokens", 576))


def _load(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _save(weights: Mapping[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
