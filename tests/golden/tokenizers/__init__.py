from pathlib import Path

TOKENIZER = Path(__file__).parent
