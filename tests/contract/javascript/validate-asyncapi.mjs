// Prints every diagnostic of an AsyncAPI document as a line; nothing where it is valid.
import { Parser, fromFile } from '@asyncapi/parser';

const { diagnostics } = await fromFile(new Parser(), process.argv[2]).parse();
for (const { code, message, path } of diagnostics) {
  console.log(`${path.join('.')}: ${message} (${code})`);
}
