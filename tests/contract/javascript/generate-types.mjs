// Prints the TypeScript types of a JSON Schema.
import { compileFromFile } from 'json-schema-to-typescript';

process.stdout.write(await compileFromFile(process.argv[2], { bannerComment: '' }));
