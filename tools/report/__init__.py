from tools.report.report import add_parser as add_parser
