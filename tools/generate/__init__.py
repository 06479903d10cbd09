from tools.generate.generate import add_parser as add_parser
