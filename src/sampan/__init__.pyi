from sampan.api import GPT as GPT, documents as documents
from sampan.checkpoint.folder import (
    load_model as load_model,
    load_tokenizer as load_tokenizer,
    save_model as save_model,
)
from sampan.config import ModelSettings as ModelSettings, SampleConfig as SampleConfig, TrainConfig as TrainConfig
from sampan.data.prepare import prepare as prepare
from sampan.engine.open import open_engine as open_engine
from sampan.errors import UserError as UserError
from sampan.sampling.write import write as write
from sampan.tokens.byte_level import train_bpe as train_bpe
from sampan.tokens.characters import characters as characters
from sampan.training.loop import Evaluation as Evaluation, Step as Step, train as train
from sampan.training.plan import make_plan as make_plan

__version__: str
