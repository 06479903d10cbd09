from tools.bench.bench import add_parser as add_parser
