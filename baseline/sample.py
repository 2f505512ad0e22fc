"""Let a trained model write: a few lines that show what it learnt.

    python sample.py                                  # continues "def " with the model that train.py left in out/
    python sample.py --prompt "import json" --tokens 200 --temperature 0.7 --seed 1

For people only: nothing in the swarm runs this. The tokens are those of tokenise.py: byte-level BPE, shipped merges.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType

import torch

WINDOW = 256  # tokens of context: what scores are taken at


def load_file(path: Path) -> ModuleType:
    """A neighbouring script as a module, wherever this one was started from."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Print the prompt and what the model makes of it."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description="Let a trained model write a few lines.")
    parser.add_argument("--artifact", type=Path, default=Path("out"), help="folder that train.py left; default: out")
    parser.add_argument("--code", type=Path, default=here / "train.py", help="the train.py that made it")
    parser.add_argument("--corpus", type=Path, help="prepared folder it was trained on; default: the shipped merges")
    parser.add_argument("--prompt", default="def ", help="what to continue")
    parser.add_argument("--tokens", type=int, default=120, help="how many tokens to write")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
    parser.add_argument("--seed", type=int, default=0, help="another seed writes another text")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(here))  # tokenise.py reads its neighbour
    try:
        merges = arguments.corpus / "merges.txt" if arguments.corpus else here / "bpe1024.txt"
        tokenizer = load_file(here / "tokenise.py").Tokenizer(merges)
        predict = load_file(arguments.code).load(str(arguments.artifact))
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, UnpicklingError) as error:  # or cut short
        print(f"sample: {error} (train first: python {here / 'train.py'})", file=sys.stderr)
        return 2
    bos = tokenizer.bos
    ids = [bos, *tokenizer.encode(arguments.prompt.encode())]
    random = torch.Generator().manual_seed(arguments.seed)
    for _ in range(arguments.tokens):
        logits = predict(torch.tensor([ids[-WINDOW:]]))[0, -1].cpu()
        if len(logits) != len(tokenizer.token_bytes):
            print(
                f"sample: the model has {len(logits)} tokens, the tokenizer {len(tokenizer.token_bytes)}: "
                "name the prepared folder that it was trained on with --corpus",
                file=sys.stderr,
            )
            return 2
        logits[bos] = -torch.inf  # the end of a document: go on instead
        ids.append(draw(logits, arguments.temperature, random))
    print(tokenizer.decode(ids).decode("utf-8", "replace"))
    return 0


def draw(logits: torch.Tensor, temperature: float, random: torch.Generator) -> int:
    """One token: the likeliest at temperature 0, else by softmax(logits / temperature)."""
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=random))


if __name__ == "__main__":
    sys.exit(main())
