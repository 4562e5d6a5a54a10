from .evaluation import evaluate
from .network import Network, compose
from .notation import parse
