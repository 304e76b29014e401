from .checkpoint import load_model as load_model, load_tokenizer as load_tokenizer, save_model as save_model
from .config import ModelConfig as ModelConfig, SampleConfig as SampleConfig, TrainConfig as TrainConfig
from .data import prepare as prepare
from .engine import open_engine as open_engine
from .errors import UserError as UserError
from .library import GPT as GPT, documents as documents
from .loop import Evaluation as Evaluation, Step as Step, train as train
from .plan import make_plan as make_plan
from .sample import write as write
from .tokenizer import characters as characters, train_bpe as train_bpe

__version__: str
